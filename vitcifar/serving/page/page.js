// What the whole page does in the browser: its address in the examples for programs, and whether the server answers.
const address = location.origin + location.pathname.replace(/\/+$/, '');
for (const block of element.querySelectorAll('pre')) {
  block.textContent = block.textContent.replaceAll('http://ADDRESS', address);
}
element.querySelector('a.docs').href = address + '/docs';

async function check() {
  if (!element.isConnected) return;
  let alive = false;
  try {
    alive = (await fetch(address + '/health/live', { cache: 'no-store', signal: AbortSignal.timeout(5000) })).ok;
  } catch {
    // alive stays false
  }
  document.body.classList.toggle('offline', !alive); // hides Gradio's own message too
  const note = document.querySelector('#status .unreachable');
  if (note) {
    note.hidden = alive;
    const sentence = alive ? '' : 'The server does not answer. This page goes on as soon as it does.';
    if (note.textContent !== sentence) note.textContent = sentence;
  }
  setTimeout(check, alive ? 5000 : 2000);
}
setTimeout(check, 2000);
