'use strict';
// Recordings wait in a list: each is sent in its turn, its segments are shown as they are decoded, and it stays to be
// heard and saved. Whatever a server, a file name or a model wrote goes into the page as text, never as markup.
const at = id => document.getElementById(id);
const settings = JSON.parse(at('settings').dataset.values);
const player = at('player');
const recordings = []; // {file, state, segments, files: content by format once it is done, problem: words for fail()}
let working = null;    // the one that is sent or transcribed
let shown = null;      // the one in the lower half of the page
let request = null;    // in flight
let recorder = null;   // while the microphone is open
let isLocked = false;  // until a token is given

const tell = (place, hebrew, english, detail = '') => {
  const words = document.createElement('span');
  words.lang = 'en';
  words.textContent = english;
  place.replaceChildren(hebrew, ' ', words);
  if (detail) {
    const said = document.createElement('bdi');
    said.dir = 'auto';
    said.textContent = detail;
    place.append(said);
  }
};
const fail = (hebrew, english, detail) => {
  tell(at('problem'), hebrew, english, detail);
  at('problem').hidden = false;
};
const clock = seconds => {
  const whole = Math.floor(seconds), two = number => String(number).padStart(2, '0');
  const hours = Math.floor(whole / 3600);
  return `${hours ? `${hours}:` : ''}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
};

// What a status of the server means to the person in front of the page.
const REFUSALS = {
  408: ['השליחה ארכה זמן רב מדי.', 'The upload took too long.'],
  413: ['הקובץ גדול מדי.', 'The file is too large.'],
  422: ['השרת אינו יכול לתמלל את הקובץ.', 'The server cannot transcribe this.'],
  429: ['השרת עסוק. נסו שוב בעוד רגע.', 'The server is busy. Try again in a moment.'],
  503: ['השרת נכשל בתמלול.', 'The server could not transcribe this.'],
};

const STATES = {
  waiting: ['…', 'ממתין · waiting'],
  working: ['●', 'בתמלול · being transcribed'],
  done: ['✓', 'מוכן · done'],
  failed: ['✗', 'נכשל · failed'],
  canceled: ['–', 'בוטל · canceled'],
};
const list = () => {
  at('recordings').hidden = recordings.length < 2;
  at('recordings').replaceChildren(...recordings.map(one => {
    const item = document.createElement('li'), button = document.createElement('button');
    const mark = document.createElement('span'), name = document.createElement('bdi');
    [mark.textContent, button.title] = STATES[one.state];
    mark.className = one.state;
    name.textContent = one.file.name;
    button.type = 'button';
    button.setAttribute('aria-current', one === shown);
    button.append(mark, name);
    button.addEventListener('click', () => show(one));
    item.append(button);
    return item;
  }));
};

const show = one => {
  shown = one;
  if (player.src) URL.revokeObjectURL(player.src);
  at('mute').hidden = true;
  player.hidden = false;
  player.src = URL.createObjectURL(one.file);
  at('name').textContent = one.file.name;
  at('segments').replaceChildren();
  one.segments.forEach(add);
  at('problem').hidden = true;
  if (one.problem) fail(...one.problem);
  at('result').hidden = false;
  told();
  list();
};
const told = () => {
  at('saves').hidden = !shown.files || !shown.segments.length;
  at('nothing').hidden = !shown.files || shown.segments.length > 0;
};

const add = segment => {
  const button = document.createElement('button'), time = document.createElement('time');
  const text = document.createElement('span'), item = document.createElement('li');
  button.type = 'button';
  time.textContent = clock(segment.start);
  text.textContent = segment.text;
  text.dir = /[\u0590-\u08ff]/.test(segment.text) ? 'rtl' : 'auto';
  if (segment.suspect) {
    text.className = 'suspect';
    button.title = 'ייתכן שהמודל טעה כאן · The model may be wrong here';
  }
  button.addEventListener('click', () => {
    player.currentTime = segment.start;
    player.play().catch(() => {});  // a file that cannot be played has been told already
  });
  button.append(time, text);
  item.append(button);
  at('segments').append(item);
};

const next = () => {
  const one = recordings.find(waits => waits.state === 'waiting');
  if (one && !working && !isLocked) send(one);
};
const end = (one, state, ...problem) => {
  one.state = state;
  working = request = null;
  at('working').hidden = true;
  if (problem.length) one.problem = problem;
  if (problem.length && shown === one) fail(...problem);
  list();
  if (state !== 'waiting') next();
};
const refuse = (one, status, detail) =>
  end(one, 'failed', ...(REFUSALS[status] ?? ['השרת סירב לבקשה.', 'The server refused.']), detail);
const lost = one =>
  end(one, 'failed', 'אין תשובה מהשרת, או שהקשר אליו נקטע.', 'The server does not answer, or the connection to it broke.');

const ask = token => {
  isLocked = true;
  at('admission').hidden = false;
  at('token').focus();
  if (token) fail('האסימון אינו נכון.', 'This token is not the right one.');
};

// Whether the event ends the answer.
const hear = (one, event) => {
  if (event.type === 'transcript.text.delta') {
    one.segments.push(event.segment);
    if (shown !== one) return false;
    add(event.segment);
    if (player.duration > 0 && player.duration < Infinity) {
      at('progress').value = Math.min(event.segment.end / player.duration, 1);
    }
    return false;
  }
  if (event.type === 'transcript.text.done') {
    one.files = event.files;
    if (shown === one) told();
  }
  return Boolean(event.error) || event.type === 'transcript.text.done';
};

const send = async one => {
  working = one;
  one.state = 'working';
  if (player.paused) show(one); else list();  // who listens to another one goes on
  if (one.file.size > settings.upload_mib * 2 ** 20) {
    refuse(one, 413, `${Math.ceil(one.file.size / 2 ** 20)} MiB > ${settings.upload_mib} MiB`);
    return;
  }
  const form = new FormData(), sending = new XMLHttpRequest(), token = sessionStorage.getItem('token');
  form.append('language', at('language').value);
  form.append('prompt', at('prompt').value);
  form.append('stream', 'true');
  for (const kind of ['srt', 'vtt', 'txt']) form.append('include[]', kind);
  form.append('file', one.file, one.file.name);
  request = sending;
  const progress = at('progress'), headers = token ? {Authorization: `Bearer ${token}`} : {};
  at('working').hidden = false;
  progress.removeAttribute('value');
  tell(at('status'), 'שולח…', 'Sending');
  // Asked before hours of sound are sent in vain: a server that refuses may close the connection in the middle of them.
  const admitted = await fetch('v1/models', {headers}).catch(() => null);
  if (request !== sending) return;
  if (!admitted) { lost(one); return; }
  if (admitted.status === 401) {
    end(one, 'waiting');
    ask(token);
    return;
  }

  sending.open('POST', 'v1/audio/transcriptions');
  for (const name in headers) sending.setRequestHeader(name, headers[name]);
  sending.upload.onprogress = event => { if (event.lengthComputable) progress.value = event.loaded / event.total; };
  sending.upload.onload = () => {
    progress.removeAttribute('value');
    tell(at('status'), 'מתמלל…', 'Transcribing');
  };
  let seen = 0, last = null;
  sending.onprogress = () => {
    if (request !== sending || sending.status !== 200) return;
    let until;
    while ((until = sending.responseText.indexOf('\n\n', seen)) >= 0) {
      const line = sending.responseText.slice(seen, until);
      const event = line.startsWith('data: ') && JSON.parse(line.slice(6));
      seen = until + 2;
      if (event && hear(one, event)) last = event;
    }
  };
  sending.onload = () => {
    if (request !== sending) return;
    sending.onprogress();
    if (sending.status !== 200) {
      let detail = sending.statusText;
      try { detail = JSON.parse(sending.responseText).error.message; } catch { /* the words of a proxy, not ours */ }
      refuse(one, sending.status, detail);
    } else if (!last) {
      end(one, 'failed', 'התשובה נקטעה.', 'The answer broke off: what is shown is not all.');
    } else if (last.error) {
      refuse(one, last.error.code, last.error.message);
    } else {
      end(one, 'done');
    }
  };
  sending.onerror = () => { if (request === sending) lost(one); };
  sending.send(form);
};

const take = given => {
  if (!given.length) return;
  if (!working) player.pause();  // so that the new one is shown
  recordings.push(...given.map(file => ({file, state: 'waiting', segments: [], files: null, problem: null})));
  list();
  next();
};

// What was dropped: files whatever they are, and what sounds in folders.
const SOUNDS = /^(audio|video)\//, ENDINGS = /\.(amr|caf|flac|m4a|m4b|mka|mkv|mp3|oga|ogg|opus|wav|weba|webm|wma)$/i;
const filesBelow = async entry => {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
    return file && !file.name.startsWith('.') && (SOUNDS.test(file.type) || ENDINGS.test(file.name)) ? [file] : [];
  }
  const reader = entry.createReader(), entries = [];
  for (;;) {  // a folder is told a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
    if (!some.length) break;
    entries.push(...some);
  }
  entries.sort((a, b) => a.name.localeCompare(b.name));
  return (await Promise.all(entries.map(filesBelow))).flat();
};
const drop = async given => {
  // Asked at once: after the first wait the browser forgets what was dropped.
  const items = [...given.items].filter(item => item.kind === 'file');
  const each = items.map(item => [item.webkitGetAsEntry(), item.getAsFile()]);
  const found = await Promise.all(each.map(([entry, file]) => (entry?.isDirectory ? filesBelow(entry) : [file])));
  if (each.length && !found.flat().length) fail('אין הקלטה בתיקייה.', 'There is no recording in this folder.');
  take(found.flat());
};

// the microphone
let spoken = 0;
const idle = () => {
  recorder = null;
  at('record').setAttribute('aria-pressed', 'false');
  at('record-words').textContent = 'הקלטה מהמיקרופון';
  at('record-english').textContent = 'Record';
};
const record = async () => {
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    fail('הדפדפן מקליט רק בדפים מאובטחים.', 'Browsers record on https pages and on localhost only.');
    return;
  }
  at('problem').hidden = true;
  player.pause();
  at('record').disabled = true;  // until the person has answered the browser's question
  try {
    const stream = await navigator.mediaDevices.getUserMedia({audio: true});
    const type = ['audio/webm;codecs=opus', 'audio/mp4', 'audio/ogg;codecs=opus'].find(MediaRecorder.isTypeSupported);
    const parts = [], recording = new MediaRecorder(stream, type ? {mimeType: type} : {}), since = performance.now();
    const tick = () => { at('record-words').textContent = clock((performance.now() - since) / 1000); };
    const timer = setInterval(tick, 500);
    recording.ondataavailable = event => parts.push(event.data);
    recording.onstop = () => {
      clearInterval(timer);
      stream.getTracks().forEach(track => track.stop());
      idle();
      const kind = recording.mimeType.split(';')[0] || 'audio/webm';
      take([new File(parts, `recording${++spoken > 1 ? `-${spoken}` : ''}.${kind.split('/')[1]}`, {type: kind})]);
    };
    recording.start(1000);
    recorder = recording;
    tick();
    at('record').setAttribute('aria-pressed', 'true');
    at('record-english').textContent = 'Stop and transcribe';
  } catch (error) {
    idle();
    const missing = error.name === 'NotFoundError';
    fail(...(missing ? ['לא נמצא מיקרופון.', 'There is no microphone.']
      : ['אין גישה למיקרופון.', 'The microphone may not be used.']), error.message);
  } finally {
    at('record').disabled = false;
  }
};

at('model').textContent = settings.model;
at('file').addEventListener('change', event => {
  take([...event.target.files]);
  event.target.value = '';  // the same file can be chosen again
});
at('record').addEventListener('click', () => (recorder ? recorder.stop() : record()));
at('cancel').addEventListener('click', () => {
  request?.abort();
  end(working, 'canceled');
});
at('admission').addEventListener('submit', event => {
  event.preventDefault();
  const token = at('token').value.trim();
  if (!/^[!-~]+$/.test(token)) {  // no header can hold it, and serve takes no such token
    ask(token || ' ');
    return;
  }
  sessionStorage.setItem('token', token);
  isLocked = false;
  at('admission').hidden = true;
  next();
});
at('saves').addEventListener('click', event => {
  const kind = event.target.dataset.save;
  if (!kind) return;
  const link = document.createElement('a'), url = URL.createObjectURL(new Blob([shown.files[kind]], {type: 'text/plain'}));
  link.href = url;
  link.download = `${at('name').textContent.replace(/\.[^.]*$/, '')}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
});
// A file that misses the field must not replace the page.
for (const kind of ['dragover', 'drop', 'dragleave']) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    at('drop').classList.toggle('over', kind === 'dragover');
    if (kind === 'drop') drop(event.dataTransfer);
  });
}
player.addEventListener('error', () => {
  at('mute').hidden = false;
  player.hidden = true;
});
// MediaRecorder writes no duration, and Chromium cannot seek before it has looked for the end.
player.addEventListener('loadedmetadata', () => {
  if (player.duration !== Infinity) return;
  player.addEventListener('durationchange', () => { player.currentTime = 0; }, {once: true});
  player.currentTime = 1e7;
});
player.addEventListener('timeupdate', () => {
  const now = shown.segments.findLastIndex(segment => segment.start <= player.currentTime + 0.05);
  at('segments').querySelector('.now')?.classList.remove('now');
  if (now >= 0 && !player.paused) at('segments').children[now].firstChild.classList.add('now');
});
