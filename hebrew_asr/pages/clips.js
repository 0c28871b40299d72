// The list of all clips: filtered by words and by whether there are errors, in an order of choice, 100 at a time.
// #clip-data holds [id, group, errors, words, said, heard, sound] of each.
const clipData = document.getElementById('clip-data');
if (clipData) {
  const clips = JSON.parse(clipData.textContent);
  const [query, kind, order] = ['clip-query', 'clip-kind', 'clip-order'].map(id => document.getElementById(id));
  const body = document.querySelector('#clip-list tbody');
  const count = document.getElementById('clip-count');
  const more = document.getElementById('clip-more');
  const text = clips.map(clip => [clip[0], clip[1], clip[4], clip[5]].join('\n').toLowerCase());
  const orders = {
    errors: (a, b) => clips[b][2] - clips[a][2] || rate(b) - rate(a),
    rate: (a, b) => rate(b) - rate(a) || clips[b][2] - clips[a][2],
    words: (a, b) => clips[b][3] - clips[a][3],
    name: (a, b) => clips[a][0] < clips[b][0] ? -1 : 1,
    group: (a, b) => clips[a][1] === clips[b][1] ? orders.rate(a, b) : clips[a][1] < clips[b][1] ? -1 : 1,
  };
  const rate = index => clips[index][2] / Math.max(clips[index][3], 1);
  const made = (name, content, cls) => {
    const node = document.createElement(name);
    if (content !== undefined) node.textContent = content;
    if (cls) node.className = cls;
    return node;
  };
  const words = line => line.split(/\s+/).filter(Boolean);
  // Which words of each side lie on a longest common subsequence.
  const shared = (left, right) => {
    const best = Array.from({length: left.length + 1}, () => new Uint16Array(right.length + 1));
    for (let i = left.length - 1; i >= 0; i--) for (let j = right.length - 1; j >= 0; j--)
      best[i][j] = left[i] === right[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    const kept = [new Set(), new Set()];
    for (let i = 0, j = 0; i < left.length && j < right.length;) {
      if (left[i] === right[j]) { kept[0].add(i++); kept[1].add(j++); }
      else if (best[i + 1][j] >= best[i][j + 1]) i++;
      else j++;
    }
    return kept;
  };
  const line = (parts, kept, cls) => {
    const node = made('p', undefined, 'line');
    node.dir = 'rtl';
    node.lang = 'he';
    if (!parts.length) node.append(made('span', '–', 'word'));
    parts.forEach((word, index) => node.append(made('span', word, kept.has(index) ? 'word' : `word ${cls}`), ' '));
    return node;
  };
  const row = clip => {
    const [id, group, errors, total, said, heard, sound] = clip;
    const [left, right] = [words(said), words(heard)];
    const kept = shared(left.slice(0, 200), right.slice(0, 200));
    const tally = made('td', undefined, 'tally');
    const name = made('small');
    name.append(made('bdi', group && group !== id ? `${id} · ${group}` : id));
    tally.append(made('b', errors), ` in ${total}`, name);
    if (sound) {
      const player = made('audio');
      player.controls = true;
      player.preload = 'none';
      player.src = sound;
      tally.append(player);
    }
    const cell = made('td');
    cell.append(line(left, kept[0], 'delete'), line(right, kept[1], 'substitute'));
    const entry = made('tr');
    entry.append(tally, cell);
    return entry;
  };
  let found = [], shown = 0;
  const show = number => {
    body.append(...found.slice(shown, shown + number).map(index => row(clips[index])));
    shown = Math.min(shown + number, found.length);
    more.hidden = shown === found.length;
    count.textContent = `${shown.toLocaleString('en')} of ${found.length.toLocaleString('en')} shown, ` +
      `${clips.length.toLocaleString('en')} in all`;
  };
  const refresh = () => {
    const asked = query.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const fits = {all: () => true, wrong: clip => clip[2] > 0, right: clip => clip[2] === 0}[kind.value];
    found = clips.map((_, index) => index).filter(index =>
      fits(clips[index]) && asked.every(word => text[index].includes(word)));
    found.sort(orders[order.value]);
    body.replaceChildren();
    shown = 0;
    show(100);
  };
  [query, kind, order].forEach(control => control.addEventListener('input', refresh));
  more.addEventListener('click', () => show(100));
  refresh();
}
