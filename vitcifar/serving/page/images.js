// The script of images.py. Gradio passes `element`, `props`, `trigger` and `watch`. The files stay here: parts of them
// are sent one after another, and the rows that come back are appended. All HTML comes escaped from the server.
const find = (selector) => element.querySelector(selector);
const root = find(".many"), input = find("input"), body = find("tbody"), go = find(".go"), csv = find(".csv");
const limits = root.dataset, action = limits.action, drop = find(".drop");
let files = [], done = 0, turn = 0, working = false, versions = [], started = 0, before = 0;
let lines = [], details = [], sorted = null, waiting = null, note = "";

const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;

function say(text, isProblem = false) {
  find(".progress").textContent = text + note;
  find(".progress").classList.toggle("problem", isProblem);
}

function show() {
  go.disabled = !files.length;
  go.textContent = working ? "Stop" : done < files.length ? "Continue" : `${action} again`;
  find(".clear").disabled = !files.length;
  if (csv) csv.disabled = !done;
  find("progress").value = files.length ? done / files.length : 0;
  root.classList.toggle("started", done > 0);
  for (const number of element.querySelectorAll("[data-count]"))
    number.textContent = body.querySelectorAll(number.dataset.count).length.toLocaleString("en");
}

function stop() { // an answer that is on its way is ignored
  turn += 1; working = false;
}

function restart(keep) {
  stop();
  done = 0; versions = []; lines = []; details = [];
  body.replaceChildren();
  find(".caption").replaceChildren();
  find(".pictured")?.replaceChildren();
  if (!keep) { files = []; note = ""; say("No images yet."); }
  show();
}

function choose(chosen) {
  const room = Number(limits.files) - files.length;
  note = chosen.length > room ? ` ${count(chosen.length - room, "image")} left out: clear the list first.` : "";
  files = files.concat([...chosen].slice(0, room));
  work();
}

const read = (file) => new Promise((resolve) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.replace(/^data:[^,]*,/, "data:image/x;base64,"));
  reader.onerror = () => resolve(null);
  reader.readAsDataURL(file);
});

async function part(start) { // the next files, with their content unless they are too large
  const chosen = [];
  let bytes = 0;
  // The first part has one image, so that its row comes soon.
  for (const file of files.slice(start, start + (start ? Number(limits.partFiles) : 1))) {
    if (chosen.length && bytes + file.size > Number(limits.partBytes)) break;
    bytes += file.size;
    chosen.push(file);
  }
  const send = async (file) => ({
    name: file.name, bytes: file.size, url: file.size > Number(limits.bytes) ? null : await read(file),
  });
  return { start, files: await Promise.all(chosen.map(send)) };
}

function ask(request) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve({ problem: "The server does not answer: continue in a moment." }), 90000);
    waiting = (answer) => {
      if (answer?.serial !== request.serial) return;
      clearTimeout(timer);
      resolve(answer);
    };
    trigger("upload", request);
  });
}

async function work() {
  if (working || done >= files.length) return show();
  const mine = ++turn;
  working = true; started = performance.now(); before = done;
  say(`${action}: ${done.toLocaleString("en")} of ${count(files.length, "image")}`);
  show();
  let next = part(done);
  while (done < files.length) {
    const request = await next;
    if (mine !== turn) return;
    if (!request.files.length) { // more files were chosen since
      next = part(done);
      continue;
    }
    request.versions = versions;
    request.serial = `${mine}/${request.start}`;
    const reply = ask(request);
    next = part(done + request.files.length); // read while the server works
    const answer = await reply;
    if (mine !== turn) return;
    if (answer.problem) {
      stop();
      say(answer.problem, true);
      return show();
    }
    append(answer);
  }
  working = false;
  const seconds = (performance.now() - started) / 1000;
  const unread = body.querySelectorAll("tr[data-error]").length;
  say(`${count(done, "image")} done${unread ? `, ${unread} of them cannot be read` : ""}; ` +
    `${((done - before) / seconds).toFixed(1)} per second.`);
  show();
}

function append(answer) {
  versions = answer.versions;
  for (const { row, line, shown } of answer.rows) {
    body.insertAdjacentHTML("beforeend", row);
    lines.push(line);
    details.push(shown);
  }
  done += answer.rows.length;
  if (csv) lines.head = answer.head;
  find(".caption").innerHTML = answer.caption;
  if (details.at(-1)) showRow(body.lastElementChild);
  if (sorted) sort();
  const left = (files.length - done) * (performance.now() - started) / (done - before) / 1000;
  say(`${action}: ${done.toLocaleString("en")} of ${count(files.length, "image")}, about ${Math.ceil(left)} s left`);
  show();
}

function showRow(row) { // its details are shown
  body.querySelector(".chosen")?.classList.remove("chosen");
  row.classList.add("chosen");
  find(".pictured").innerHTML = details[row.dataset.number - 1];
}

function sort() {
  const { key, order } = sorted;
  const value = (row) => row.dataset[key] ?? "";
  const compare = (one, other) => {
    const [a, b] = [value(one), value(other)];
    if (!a || !b) return Boolean(b) - Boolean(a) || one.dataset.number - other.dataset.number; // errors last
    return order * a.localeCompare(b, undefined, { numeric: !/^\d*\.\d/.test(a) }) || one.dataset.number - other.dataset.number;
  };
  body.append(...[...body.children].sort(compare));
  for (const head of element.querySelectorAll("th[aria-sort]")) {
    const own = head.firstElementChild.dataset.key === key;
    head.setAttribute("aria-sort", own ? (order > 0 ? "ascending" : "descending") : "none");
  }
}

element.addEventListener("click", (event) => {
  const head = event.target.closest("th button[data-key]"), row = event.target.closest("tbody tr");
  if (head) {
    const again = sorted?.key === head.dataset.key;
    sorted = { key: head.dataset.key, order: again ? -sorted.order : 1 };
    sort();
  } else if (event.target === go && working) {
    stop();
    say(`Stopped after ${done.toLocaleString("en")} of ${count(files.length, "image")}.`);
    show();
  } else if (event.target === go) {
    if (done >= files.length) restart(true);
    work();
  } else if (event.target === find(".clear")) restart(false);
  else if (event.target === csv) save();
  else if (row && details[row.dataset.number - 1]) showRow(row);
});

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.head, ...lines], { type: "text/csv;charset=utf-8" }));
  link.download = csv.dataset.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

input.addEventListener("change", () => { choose(input.files); input.value = ""; });
for (const kind of ["dragover", "dragleave", "drop"])
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
watch("value", () => {
  if (props.value?.restart && files.length) { restart(true); work(); } else waiting?.(props.value);
});
