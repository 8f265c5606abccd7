// The page of `divot demo`. Plain modules, no build step, no library.
// Texts of models and files enter as text, never as HTML.

const $ = (selector) => document.querySelector(selector);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const POLL_MILLISECONDS = 250;
const KEPT_RESULTS = 10;

let about;            // what the server can do
let clip = null;      // the chosen clip: {id, name, seconds}
let turns = [];       // questions and answers about it
let job = null;       // id of the job that waits or runs

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// --- the server

async function call(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Is divot demo still running?");
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(found.error ?? `The server answers: ${response.status} ${response.statusText}`);
  return found;
}

function complain(error) {
  $("#reason").textContent = error.message;
  $("#problem").hidden = false;
}

// Do a job and show how far it is; `show` gets what is there so far. Returns null if it was cancelled.
async function work(request, show = () => {}) {
  if (job !== null) return null;
  $("#problem").hidden = true;
  job = "";
  busy(true);
  try {
    let state = await call("api/jobs", { method: "POST", body: JSON.stringify(request) });
    job = state.id;
    while (state.state === "waiting" || state.state === "running") {
      progress(state);
      show(state);
      await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
      state = await call(`api/jobs/${job}`);
    }
    if (state.state === "failed") throw new Error(state.error);
    if (state.state === "cancelled") return null;
    show(state);
    return state;
  } catch (error) {
    complain(error);
    return null;
  } finally {
    job = null;
    busy(false);
  }
}

function progress(state) {
  const ahead = state.ahead === 1 ? "1 job is before yours" : `${state.ahead} jobs are before yours`;
  $("#stage").textContent = state.state === "waiting" ? (state.ahead ? ahead : "starting") : state.stage || "starting";
  if (state.fraction === null) $("#progress").removeAttribute("value");
  else $("#progress").value = state.fraction;
}

function busy(is) {
  $("#status").hidden = !is;
  $("#stage").textContent = "sending";
  $("#cancel").disabled = false;
  for (const button of document.querySelectorAll("form button:not(.another):not(.example)")) button.disabled = is;
}

async function cancel() {
  $("#cancel").disabled = true;
  if (job) await call(`api/jobs/${job}`, { method: "DELETE" }).catch(complain);
}

// --- clips on the page

function video(address, label) {
  const element = make("video", { src: address, muted: true, playsInline: true, preload: "auto", controls: calm });
  element.setAttribute("aria-label", label);
  return element;
}

function figure(shown, label) {
  const links = make("figcaption", {}, make("a", { href: shown.file, download: "" }, "Download mp4"));
  if (shown.settings) links.append(" · ", make("a", { href: shown.settings, download: "" }, "settings"));
  return make("figure", {}, video(shown.view, label), links);
}

// All clips of a result play together, and begin again together.
function play(result) {
  const clips = [...result.querySelectorAll("video")];
  if (!clips.length || calm) return;
  const start = () => clips.forEach((one) => { one.currentTime = 0; one.play().catch(() => {}); });
  clips[0].onended = start;
  const button = result.querySelector("button.pause");
  button.onclick = () => {
    const pause = button.textContent === "Pause";
    clips.forEach((one) => (pause ? one.pause() : one.play().catch(() => {})));
    button.textContent = pause ? "Play" : "Pause";
  };
  start();
}

function notesOf(state) {
  const lines = state.notes.map((one) => make("div", {}, one));
  return lines.length ? make("div", { className: "notes" }, ...lines) : null;
}

function result(title, words, state, ...children) {
  const moves = children.some((one) => one.querySelector("video"));
  const pause = calm || !moves ? null : make("button", { type: "button", className: "pause" }, "Pause");
  const head = make("header", {}, make("h3", {}, title), make("span", { className: "faint" }, words), pause);
  return make("article", { className: "result" }, head, notesOf(state), ...children);
}

function insert(results, article) {
  results.prepend(article);
  while (results.children.length > KEPT_RESULTS) results.lastChild.remove();
  play(article);
}

// --- choosing a clip

function choose(found) {
  clip = found;
  turns = [];
  $("#answers").replaceChildren();
  $("#reconstruction").replaceChildren();
  const length = found.seconds ? `${found.seconds} seconds` : "picture";
  $("#chosen").textContent = `Chosen: ${found.name} (${length})`;
  $("#chosen").hidden = false;
  $(".needs-clip").hidden = false;
  for (const button of document.querySelectorAll("#example-clips button")) {
    button.setAttribute("aria-pressed", button.dataset.clip === found.id);
  }
}

async function upload(file) {
  $("#problem").hidden = true;
  const most = about.limits.upload_mb;
  if (file.size > most * 1e6) {
    const size = (file.size / 1e6).toFixed(1);
    complain(new Error(`The file is too large: ${size} MB. This page takes at most ${most} MB.`));
    return;
  }
  $("#chosen").textContent = `Sending ${file.name} ...`;
  $("#chosen").hidden = false;
  try {
    choose(await call(`api/clips?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file }));
  } catch (error) {
    $("#chosen").hidden = clip === null;
    if (clip) $("#chosen").textContent = `Chosen: ${clip.name}`;
    complain(error);
  }
}

function watchDrop() {
  const drop = $("#drop");
  $("#file").onchange = (event) => {
    if (event.target.files[0]) upload(event.target.files[0]);
    event.target.value = "";
  };
  // A file that misses the field must not replace the page.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
  drop.addEventListener("dragover", () => drop.classList.add("over"));
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => event.dataTransfer.files[0] && upload(event.dataTransfer.files[0]));
}

// --- what can be done

function values(form) {
  const found = {};
  for (const field of form.elements) {
    if (!field.name || field.value === "") continue;
    const read = { number: () => field.valueAsNumber, checkbox: () => field.checked }[field.type];
    found[field.name] = read ? read() : field.value;
  }
  return found;
}

async function reconstruct(event) {
  event.preventDefault();
  const state = await work({ kind: "reconstruct", clip: clip.id, ...values(event.target) });
  if (!state) return;
  const { original, clip: decoded, psnr, seed, system } = state.result;
  const caption = make("figcaption", {}, "frames that are encoded");
  const before = make("figure", {}, video(original, "What the model read"), caption);
  const columns = make("div", { className: "columns" },
    make("div", {}, make("h4", {}, "Original"), before),
    make("div", {}, make("h4", {}, "Reconstruction"), figure(decoded, "Reconstruction")));
  insert($("#reconstruction"), result("Side by side", `${system} · PSNR ${psnr} dB · seed ${seed}`, state, columns));
}

async function ask(question) {
  const form = $("#ask-form");
  const { system } = values(form);
  const history = form.elements.remember.checked ? turns.slice(-about.limits.turns) : [];
  const watched = clip;
  const state = await work({ kind: "ask", clip: clip.id, system, question, history });
  if (!state || watched !== clip) return;
  const { answer } = state.result;
  if (question && answer.trim()) turns.push({ question, answer });
  $("#answers").prepend(make("li", {},
    make("p", { className: "question" }, question || "Describe the clip"),
    make("p", { className: "answer" }, answer || "(the model wrote nothing)"), notesOf(state)));
}

async function generate(event) {
  event.preventDefault();
  const systems = [...document.querySelectorAll("#heads input:checked")].map((one) => one.value);
  if (!systems.length) return complain(new Error("Choose at least one head."));
  let article = null, count = 0;
  await work({ kind: "generate", systems, ...values(event.target) }, (state) => {
    const found = state.result.systems ?? [];
    if (found.length === count) return;
    count = found.length;
    const columns = found.map((one) => make("div", {},
      make("h4", {}, one.head, make("span", { className: "faint" }, ` ${one.name}`)),
      ...one.clips.map((shown, number) => figure(shown, `${one.name}, clip ${number + 1}`))));
    const all = make("div", { className: "columns" }, ...columns);
    const next = result(state.result.prompt, `seed ${state.result.seed}`, state, all);
    if (article === null) insert($("#samples"), next);
    else { article.replaceWith(next); play(next); }
    article = next;
  }).then((state) => { if (!state && article) article.remove(); });
}

async function tell(event) {
  event.preventDefault();
  const request = values(event.target);
  const state = await work({ kind: "story", ...request });
  if (!state) return;
  const { parts, seed, system, settings } = state.result;
  const scenes = parts.map((part, number) => make("li", {},
    make("p", {}, part.text || "(no words)"), part.clip ? figure(part.clip, `Clip ${number + 1}`) : null));
  const link = make("p", {}, make("a", { href: settings, download: "" }, "Download story.json"));
  const list = make("ol", { className: "scenes" }, ...scenes);
  insert($("#told"), result(request.instruction, `${system} · seed ${seed}`, state, list, link));
}

// --- filling the page

function show(tab) {
  for (const button of document.querySelectorAll("nav button")) {
    const chosen = button.id === `tab-${tab}`;
    button.setAttribute("aria-selected", chosen);
    button.tabIndex = chosen ? 0 : -1;
    $(`#${button.getAttribute("aria-controls")}`).hidden = !chosen;
  }
}

function able(ability) {
  return about.systems.filter((system) => system.abilities.includes(ability));
}

function fillRuns(form, ability) {
  const select = form.elements.system, systems = able(ability);
  const label = (one) => (one.head ? `${one.name} (${one.head})` : one.name);
  select.append(...systems.map((one) => make("option", { value: one.name }, label(one))));
  select.value = about.preferred[ability][0] ?? "";
  select.parentElement.hidden = systems.length < 2;
}

function fillHeads() {
  for (const system of able("generate")) {
    const checked = about.preferred.generate.includes(system.name);
    const box = make("input", { type: "checkbox", value: system.name, checked });
    const label = make("span", {}, `${system.head} `, make("small", {}, system.name));
    $("#heads").append(make("label", { className: "tick" }, box, label));
  }
}

function fillExamples() {
  for (const example of about.examples.clips) {
    const button = make("button", { type: "button", className: "clip", onclick: () => choose(example.clip) },
      video(example.view, ""), example.clip.name);
    button.dataset.clip = example.clip.id;
    button.onmouseenter = button.onfocus = () => button.firstChild.play().catch(() => {});
    $("#example-clips").append(button);
  }
  for (const strip of document.querySelectorAll("[data-examples]")) {
    const field = strip.parentElement.querySelector("textarea, [name=question]");
    for (const text of about.examples.texts[strip.dataset.examples] ?? []) {
      const button = make("button", { type: "button", className: "example" }, text);
      button.onclick = () => { field.value = text; field.focus(); };
      strip.append(button);
    }
  }
}

function fillLimits() {
  const { upload_mb, seconds, samples, story_clips, steps, characters } = about.limits;
  const kept = "it stays on this machine until divot demo ends";
  $("#upload-limits").textContent = `at most ${upload_mb} MB and ${seconds} seconds; ${kept}`;
  $("#prompt-form").elements.num.max = samples;
  $("#prompt-form").elements.steps.max = steps;
  $("#story-form").elements.num_clips.max = story_clips;
  for (const field of document.querySelectorAll("textarea, [name=question]")) field.maxLength = characters;
  $("#about").textContent = `divot-lightning ${about.version}. The same seed gives the same clip on the same machine.`;
}

async function begin() {
  about = await call("api/about");
  const clips = able("reconstruct").length + able("ask").length;
  const tabs = { clip: clips, prompt: able("generate").length, story: able("story").length };
  for (const [name, count] of Object.entries(tabs)) {
    $(`#tab-${name}`).hidden = !count;
    $(`#tab-${name}`).onclick = () => show(name);
  }
  $("nav").onkeydown = (event) => {
    const shown = [...document.querySelectorAll("nav button:not([hidden])")];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = shown[(shown.indexOf(document.activeElement) + step + shown.length) % shown.length];
    next.focus();
    next.click();
  };
  $("#reconstructing").hidden = !able("reconstruct").length;
  $("#asking").hidden = !able("ask").length;
  fillRuns($("#reconstruct-form"), "reconstruct");
  fillRuns($("#ask-form"), "ask");
  fillRuns($("#story-form"), "story");
  fillHeads();
  fillExamples();
  fillLimits();
  const remember = () => {
    const system = about.systems.find((one) => one.name === $("#ask-form").elements.system.value);
    $("#ask-form").elements.remember.checked = Boolean(system?.tasks.includes("conversation"));
  };
  $("#ask-form").elements.system.onchange = remember;
  remember();
  watchDrop();
  $("#reconstruct-form").onsubmit = reconstruct;
  $("#ask-form").onsubmit = (event) => {
    event.preventDefault();
    const question = event.target.elements.question.value.trim();
    if (question) ask(question); else complain(new Error("There is no question. Write one."));
  };
  $("#describe").onclick = () => ask("");
  $("#prompt-form").onsubmit = generate;
  $("#story-form").onsubmit = tell;
  for (const button of document.querySelectorAll(".another")) {
    button.onclick = () => { button.form.elements.seed.value = Math.floor(Math.random() * 2 ** 31); };
  }
  $("#cancel").onclick = cancel;
  $("#close").onclick = () => { $("#problem").hidden = true; };
  // Nobody waits for a job whose page is gone.
  addEventListener("pagehide", () => { if (job) fetch(`api/jobs/${job}`, { method: "DELETE", keepalive: true }); });
  show(Object.keys(tabs).find((name) => tabs[name]) ?? "clip");
}

begin().catch(complain);
