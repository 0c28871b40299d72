'use strict';
// One recording at a time: send it, show its segments as they are decoded, play it at a segment, save what was heard.
// Whatever a server, a file name or a model wrote goes into the page as text, never as markup.
const at = id => document.getElementById(id);
const settings = JSON.parse(at('settings').dataset.values);
const player = at('player');
let request = null;    // in flight
let recorder = null;   // while the microphone is open
let refused = null;    // the file that waits for a token
let files = {};        // content by format, of the finished transcript
let starts = [];       // s, of each segment that is shown

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
const refuse = (status, detail) => fail(...(REFUSALS[status] ?? ['השרת סירב לבקשה.', 'The server refused.']), detail);

const stop = () => {
  request?.abort();
  request = null;
  at('working').hidden = true;
};

const show = file => {
  if (player.src) URL.revokeObjectURL(player.src);
  at('mute').hidden = true;
  player.hidden = false;
  player.src = URL.createObjectURL(file);
  at('name').textContent = file.name;
  at('segments').replaceChildren();
  for (const id of ['problem', 'saves', 'nothing', 'admission']) at(id).hidden = true;
  at('result').hidden = at('working').hidden = false;
  files = {};
  starts = [];
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
  starts.push(segment.start);
};

const hear = event => {
  if (event.error) {
    refuse(event.error.code, event.error.message);
  } else if (event.type === 'transcript.text.delta') {
    add(event.segment);
  } else if (event.type === 'transcript.text.done') {
    files = event.files;
    at('saves').hidden = !starts.length;
    at('nothing').hidden = starts.length > 0;
  }
  return event.error || event.type === 'transcript.text.done';
};

const lost = () => {
  stop();
  fail('אין תשובה מהשרת, או שהקשר אליו נקטע.', 'The server does not answer, or the connection to it broke.');
};

const ask = (file, token) => {
  stop();
  refused = file;
  at('admission').hidden = false;
  at('token').focus();
  if (token) fail('האסימון אינו נכון.', 'This token is not the right one.');
};

const send = async file => {
  stop();
  show(file);
  if (file.size > settings.upload_mib * 2 ** 20) {
    at('working').hidden = true;
    refuse(413, `${Math.ceil(file.size / 2 ** 20)} MiB > ${settings.upload_mib} MiB`);
    return;
  }
  const form = new FormData(), sending = new XMLHttpRequest(), token = sessionStorage.getItem('token');
  form.append('language', at('language').value);
  form.append('prompt', at('prompt').value);
  form.append('stream', 'true');
  for (const kind of ['srt', 'vtt', 'txt']) form.append('include[]', kind);
  form.append('file', file, file.name);
  request = sending;
  const progress = at('progress'), headers = token ? {Authorization: `Bearer ${token}`} : {};
  progress.removeAttribute('value');
  tell(at('status'), 'שולח…', 'Sending');
  // Asked before hours of sound are sent in vain: a server that refuses may close the connection in the middle of them.
  const admitted = await fetch('v1/models', {headers}).catch(() => null);
  if (request !== sending) return;
  if (!admitted) { lost(); return; }
  if (admitted.status === 401) { ask(file, token); return; }

  sending.open('POST', 'v1/audio/transcriptions');
  for (const name in headers) sending.setRequestHeader(name, headers[name]);
  sending.upload.onprogress = event => { if (event.lengthComputable) progress.value = event.loaded / event.total; };
  sending.upload.onload = () => {
    progress.removeAttribute('value');
    tell(at('status'), 'מתמלל…', 'Transcribing');
  };
  let seen = 0, ended = false;
  sending.onprogress = () => {
    if (request !== sending || sending.status !== 200) return;
    let end;
    while ((end = sending.responseText.indexOf('\n\n', seen)) >= 0) {
      const line = sending.responseText.slice(seen, end);
      seen = end + 2;
      if (line.startsWith('data: ')) ended = hear(JSON.parse(line.slice(6))) || ended;
    }
  };
  sending.onload = () => {
    if (request !== sending) return;
    sending.onprogress();
    request = null;  // an aborted request forgets its status
    stop();
    if (sending.status !== 200) {
      let detail = sending.statusText;
      try { detail = JSON.parse(sending.responseText).error.message; } catch { /* the words of a proxy, not ours */ }
      refuse(sending.status, detail);
    } else if (!ended) {
      fail('התשובה נקטעה.', 'The answer broke off: what is shown is not all.');
    }
  };
  sending.onerror = () => { if (request === sending) lost(); };
  sending.send(form);
};

const choose = list => {
  if (!list.length) return;
  send(list[0]);
  if (list.length > 1) fail('קובץ אחד בכל פעם: נלקח הראשון.', 'One file at a time: the first was taken.');
};

// the microphone
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
      send(new File(parts, `recording.${kind.split('/')[1]}`, {type: kind}));
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
  choose(event.target.files);
  event.target.value = '';  // the same file can be chosen again
});
at('record').addEventListener('click', () => (recorder ? recorder.stop() : record()));
at('cancel').addEventListener('click', stop);
at('admission').addEventListener('submit', event => {
  event.preventDefault();
  const token = at('token').value.trim();
  if (!/^[!-~]+$/.test(token)) {  // no header can hold it, and serve takes no such token
    ask(refused, token || ' ');
    return;
  }
  sessionStorage.setItem('token', token);
  send(refused);
});
at('saves').addEventListener('click', event => {
  const kind = event.target.dataset.save;
  if (!kind) return;
  const link = document.createElement('a'), url = URL.createObjectURL(new Blob([files[kind]], {type: 'text/plain'}));
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
    if (kind === 'drop') choose(event.dataTransfer.files);
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
  const now = starts.findLastIndex(start => start <= player.currentTime + 0.05);
  [...at('segments').children].forEach((item, number) => {
    item.firstChild.classList.toggle('now', number === now && !player.paused);
  });
});
