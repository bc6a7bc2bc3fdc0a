// The image of the tab Classify: chosen, dropped, pasted, an example, or a live camera. `element`, `props`, `server`,
// `upload` and `watch` come from Gradio; `props.value` is what Python receives.
const find = (selector) => element.querySelector(selector);
const stage = find('.stage'), picture = find('img.shown'), video = find('video'), input = find('input[type=file]');
const note = find('.picker-note'), rate = find('.rate'), spoken = find('.spoken');
const cameraButton = find('.camera'), removeButton = find('.remove');
const limits = JSON.parse(find('.limits').textContent);
const card = () => document.querySelector('#card');
const version = () => document.querySelector('#version select').value;
const STILL = ['image/jpeg', 'image/png', 'image/webp', 'image/bmp']; // shown until the server's own image comes
let stream = null, waiting = false, serial = 0, said = '';

function tell(sentence) {
  note.textContent = sentence;
  note.hidden = !sentence;
}

function show(state, address) {
  stage.dataset.state = state;
  if (address) picture.src = address;
  else picture.removeAttribute('src');
  removeButton.hidden = state === 'empty';
  cameraButton.textContent = state === 'live' ? 'Stop camera' : 'Camera';
  rate.textContent = '';
}

// What shows again the image of the card, when another one did not reach the server.
function before() {
  const { src } = picture;
  return stage.dataset.state === 'image' ? () => show('image', src) : () => show('empty', '');
}

function setCard(html) {
  if (html) card().querySelector('.card').parentElement.innerHTML = html;
}

function busy(on) {
  waiting = on;
  card().classList.toggle('busy', on);
}

// A photo of many megapixels for a network of 32 or 224 pixels: only JPEG, which has one frame and no transparency.
async function reduced(file) {
  if (file.type !== 'image/jpeg' || file.size <= limits.keepBytes) return file;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none' });
  } catch {
    return file; // the server says what is wrong with it
  }
  const scale = limits.side / Math.max(bitmap.width, bitmap.height);
  if (scale >= 1) return file;
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise((done) => canvas.toBlob(done, 'image/jpeg', 0.95));
  rate.textContent = `sent as ${canvas.width} × ${canvas.height} pixels`;
  return new File([blob], file.name, { type: 'image/jpeg' });
}

function tooLarge(file, sent, limit) {
  if (sent.size <= limit) return false;
  const size = Math.ceil(sent.size / 2 ** 20);
  tell(`${file.name} has ${size} MiB, more than ${limit / 2 ** 20}: choose a smaller image, or save it as JPEG.`);
  return true;
}

async function accept(file) {
  if (!file) return;
  stopCamera();
  tell('');
  if (tooLarge(file, file, limits.maxBytes)) return;
  const number = ++serial, back = before();
  busy(true);
  show('image', STILL.includes(file.type) ? URL.createObjectURL(file) : '');
  try {
    const sent = await reduced(file);
    if (tooLarge(file, sent, limits.sendBytes)) {
      busy(false);
      if (number === serial) back();
      return;
    }
    const { path } = await upload(sent);
    if (number === serial) await choose(path, file.name, file.type === 'image/jpeg');
  } catch {
    busy(false);
    if (number === serial) back();
    tell(`${file.name} did not reach the server: choose it again.`);
  }
}

// `shown`: the browser shows this file as the server decodes it; else the server sends what it decodes.
async function choose(path, name, shown) {
  const number = ++serial;
  props.value = { path, orig_name: name, serial: number };
  if (shown) return;
  const { image } = await server.preview(props.value);
  if (number === serial) show('image', image);
}

async function remove() {
  const live = stream !== null;
  stopCamera();
  serial += 1;
  tell('');
  show('empty', '');
  if (!live) props.value = null;
  for (let answer = {}; live && !answer.card; setCard(answer.card)) { // Gradio believes that its empty card is shown
    answer = await server.live({ image: '', version: version() });
  }
}

const CAMERA_PROBLEMS = {
  NotFoundError: 'This device has no camera: choose a file or paste an image instead.',
  NotAllowedError: 'The browser does not allow this page the camera: allow it beside the address, or choose a file.',
  NotReadableError: 'Another program uses the camera: close it and try again, or choose a file.',
};

async function startCamera() {
  tell('');
  if (!navigator.mediaDevices?.getUserMedia) {
    tell('The browser opens a camera only for https and for this machine itself: choose a file instead.');
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment', width: { ideal: 640 } } });
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stopCamera();
    tell(CAMERA_PROBLEMS[error.name] ?? 'The camera cannot be opened: choose a file or paste an image instead.');
    return;
  }
  serial += 1;
  if (props.value) props.value = null;
  show('live', '');
  await classifyLive(stream);
}

function frame(side, quality) {
  const scale = Math.min(1, side / Math.max(video.videoWidth, video.videoHeight));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(video.videoWidth * scale));
  canvas.height = Math.max(1, Math.round(video.videoHeight * scale));
  canvas.getContext('2d').drawImage(video, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/jpeg', quality);
}

// One frame at a time: the next is taken when the last is answered, so that a slow server is not flooded.
async function classifyLive(mine) {
  const ends = [];
  while (stream === mine) {
    if (!video.videoWidth || element.offsetParent === null) {
      await new Promise((done) => setTimeout(done, 100));
      continue;
    }
    let answer;
    try {
      answer = await server.live({ image: frame(limits.liveSide, 0.9), version: version() });
    } catch {
      answer = { wait: 1000 };
    }
    if (stream !== mine) return;
    if (answer.card) {
      setCard(answer.card);
      ends.push(performance.now());
      if (ends.length > 20) ends.shift();
      const seconds = (ends.at(-1) - ends[0]) / 1000;
      if (ends.length > 1) rate.textContent = `live, ${((ends.length - 1) / seconds).toFixed(1)} images/s`;
    }
    await new Promise((done) => setTimeout(done, answer.wait ?? 0));
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.srcObject = null;
}

// The last frame stays, as an image like any other.
async function freeze() {
  const blob = await (await fetch(frame(1280, 0.95))).blob();
  await accept(new File([blob], 'camera.jpg', { type: 'image/jpeg' }));
}

async function pasteButton() {
  tell('');
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((one) => one.startsWith('image/'));
      if (type) return accept(new File([await item.getType(type)], `pasted.${type.slice(6)}`, { type }));
    }
    tell('The clipboard holds no image: copy one first.');
  } catch {
    tell('The browser does not let this page read the clipboard: press Ctrl+V instead.');
  }
}

for (const button of element.querySelectorAll('.choose')) button.addEventListener('click', () => input.click());
input.addEventListener('change', () => {
  accept(input.files[0]);
  input.value = ''; // the same file again is a change too
});
find('.paste').addEventListener('click', pasteButton);
cameraButton.addEventListener('click', () => (stream ? freeze() : startCamera()));
removeButton.addEventListener('click', () => {
  remove();
  find('.choose').focus();
});
for (const button of element.querySelectorAll('.example')) {
  button.addEventListener('click', async () => {
    stopCamera();
    tell('');
    const number = ++serial, back = before();
    busy(true);
    show('image', button.querySelector('img').src);
    try {
      const { path } = await server.example(Number(button.dataset.index));
      if (number === serial) await choose(path, button.dataset.name, false);
    } catch {
      busy(false);
      if (number === serial) back();
      tell('The server does not answer: choose the example again.');
    }
  });
}
const images = [...element.querySelectorAll('.example img')];
if (images.length) {
  server.thumbnails(0).then((addresses) => images.forEach((image, index) => { image.src = addresses[index]; }));
}
stage.addEventListener('dragover', (event) => {
  event.preventDefault();
  stage.classList.add('over');
});
stage.addEventListener('dragleave', () => stage.classList.remove('over'));
stage.addEventListener('drop', (event) => {
  event.preventDefault();
  stage.classList.remove('over');
  accept(event.dataTransfer.files[0]);
});
document.addEventListener('paste', (event) => {
  const file = [...(event.clipboardData?.files ?? [])][0];
  if (!file || !element.isConnected || element.offsetParent === null) return;
  event.preventDefault();
  accept(file);
});

// The card tells a screen reader its one sentence, and comes into view on a phone.
new MutationObserver(() => {
  const shown = card().querySelector('.card');
  if (!shown) return;
  const sentence = shown.dataset.say ?? '';
  const alike = stream ? shown.querySelector('.verdict b')?.textContent ?? '' : sentence; // live: only another label
  if (alike !== said) spoken.textContent = sentence;
  said = alike;
  if (!waiting || shown.classList.contains('empty')) return;
  busy(false);
  const { top, height } = shown.getBoundingClientRect();
  if (top + Math.min(height, 140) > window.innerHeight) {
    const smooth = matchMedia('(prefers-reduced-motion: no-preference)').matches;
    shown.scrollIntoView({ block: 'end', behavior: smooth ? 'smooth' : 'auto' });
  }
}).observe(card(), {
  childList: true, subtree: true, characterData: true, attributeFilter: ['data-say', 'data-number'],
});
picture.addEventListener('error', () => picture.removeAttribute('src')); // no icon of a broken image
picture.addEventListener('load', () => picture.classList.toggle('small', picture.naturalWidth <= 64));
show('empty', '');
