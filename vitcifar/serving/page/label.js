// The script of label.py. `element` and `server` come from Gradio. Nothing of an answer is taken as HTML.
const find = (selector) => element.querySelector(selector);
const picture = find('img'), classes = find('.classes'), skip = find('.skip'), root = find('.labelling');
let shown = { index: -1, hash: '' }, listed = '', busy = false;

function list(names) { // again only for other classes, so that the focus stays on its button
  if (JSON.stringify(names) === listed) return;
  listed = JSON.stringify(names);
  classes.replaceChildren(...names.map(([text, value]) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = text;
    button.dataset.truth = value;
    return button;
  }));
}

function show(answer) {
  const readable = answer.image !== undefined;
  shown = { index: answer.index, hash: answer.hash ?? '' };
  find('.progress').textContent = answer.progress;
  find('.said').textContent = answer.said ?? '';
  find('.problem').textContent = answer.unreadable ?? '';
  find('.predicted').textContent = answer.predicted ?? '';
  root.classList.toggle('done', answer.index === null);
  picture.hidden = classes.hidden = !readable;
  skip.hidden = answer.index === null;
  if (!readable) return picture.removeAttribute('src');
  picture.src = answer.image;
  list(answer.classes);
  for (const button of classes.children) button.classList.toggle('likely', button.dataset.truth === answer.label);
}

async function send(truth) {
  if (busy) return; // a second click would be about the next image
  busy = true;
  root.classList.add('busy');
  try {
    const answer = await server.label({ ...shown, truth });
    if (answer.problem) find('.problem').textContent = answer.problem;
    else show(answer);
  } catch {
    find('.problem').textContent = 'The server does not answer: try again in a moment.';
  }
  busy = false;
  root.classList.remove('busy');
}

picture.addEventListener('load', () => picture.classList.toggle('small', picture.naturalWidth <= 128));
classes.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) send(button.dataset.truth);
});
skip.addEventListener('click', () => send(null));
const seen = new IntersectionObserver((entries) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  seen.disconnect();
  send(null);
});
seen.observe(root);
