"use strict";
// Calls an endpoint from its form, follows the job by long polls, and shows the result. Values of results are only ever
// put in as text, so nothing that a job returned can become part of this page.
const FINISHED = new Set(["succeeded", "failed", "cancelled", "expired"]);
const WAIT_S = 15;

async function ask(method, url, body, headers = {}) {
  const response = await fetch(url, { method, body, headers, credentials: "same-origin", redirect: "error" });
  const document_ = await response.json();
  if (!response.ok) throw new Error(`${document_.title || response.status}: ${document_.detail || ""}`);
  return document_;
}

function table(rows) {
  const names = Object.keys(rows[0]);
  const made = document.createElement("table");
  const head = made.createTHead().insertRow();
  const kind = (name) => (typeof rows[0][name] === "number" ? "number" : "");
  for (const name of names) {
    head.append(Object.assign(document.createElement("th"), { textContent: name, scope: "col", className: kind(name) }));
  }
  const body = made.createTBody();
  for (const row of rows.slice(0, 200)) {
    const line = body.insertRow();
    for (const name of names) {
      const textContent = typeof row[name] === "string" ? row[name] : JSON.stringify(row[name]);
      Object.assign(line.insertCell(), { textContent, className: kind(name) });
    }
  }
  return made;
}

function isTable(value) {
  return Array.isArray(value) && value.length > 0
    && value.every((row) => row !== null && typeof row === "object" && !Array.isArray(row));
}

function show(place, job) {
  place.replaceChildren();
  const link = Object.assign(document.createElement("a"), { href: job.links.result, textContent: "Download the result" });
  if (job.result_media_type === "image/png") {
    place.append(Object.assign(document.createElement("img"), { src: job.links.result, alt: `result of ${job.endpoint}` }));
  } else if (isTable(job.result)) {
    place.append(table(job.result));
  } else if (job.status === "succeeded" && job.result !== null) {
    place.append(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(job.result, null, 2) }));
  } else if (job.error) {
    const text = job.error.traceback || job.error.message;
    place.append(Object.assign(document.createElement("pre"), { textContent: text }));
  }
  if (job.status === "succeeded") place.append(link);
  place.hidden = place.childElementCount === 0;
}

for (const form of document.querySelectorAll("form.try")) {
  const [call] = form.getElementsByTagName("button");
  const cancel = form.querySelector("[data-cancel]");
  const say = form.querySelector("output");
  const place = form.querySelector(".result");
  let current = null;

  const tell = (text, bad = false) => { say.textContent = text; say.classList.toggle("bad", bad); };
  const state = (job) => {
    const progress = job.progress ? ` ${job.progress.done}/${job.progress.total} ${job.progress.text}` : "";
    const why = job.waiting_for ? ` (${job.waiting_for})` : "";
    return `${job.status}${progress}${why}, job ${job.job_id}`;
  };

  cancel.addEventListener("click", async () => {
    try { await ask("DELETE", current.links.self); } catch (error) { tell(error.message, true); }
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    call.disabled = true;
    place.hidden = true;
    tell("calling …");
    const began = performance.now();
    try {
      current = await ask("POST", form.dataset.path, form.querySelector("textarea").value,
        { "Content-Type": "application/json", Prefer: "wait=1" });
      let again = false;
      while (!FINISHED.has(current.status)) {
        cancel.hidden = false;
        again = true;
        tell(state(current));
        current = await ask("GET", `${current.links.self}?wait=${current.progress ? 1 : WAIT_S}`);
      }
      const spent = `${((performance.now() - began) / 1000).toFixed(again ? 1 : 3)} s`;
      const message = current.error && current.status !== "succeeded" ? `: ${current.error.message}` : "";
      tell(`${current.status} in ${spent}${message}, job ${current.job_id}`, current.status !== "succeeded");
      show(place, current);
    } catch (error) {
      tell(error.message, true);
    } finally {
      cancel.hidden = true;
      call.disabled = false;
    }
  });
}
