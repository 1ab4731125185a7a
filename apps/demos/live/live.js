// The live half of the talk page: what is seen and clicked. Sound flows between worklet.js and
// socket.js beside this thread.

const here = (name) => new URL(name, import.meta.url);
const BUFFER = 3840; // samples held before a reply plays: 160 ms
const STATES = {
  off: ["Off", "Press the button and speak."],
  asking: ["Waiting for the microphone", "Your browser asks whether this page may listen."],
  connecting: ["Connecting", ""],
  listening: ["Listening", "Speak whenever you like, also while it answers."],
  ready: ["Ready", "Hold the button, or the space bar on it, while you speak."],
  hearing: ["Hearing you", ""],
  thinking: ["Your turn ended", ""],
  answering: ["Answering", "Speak to interrupt."],
  lost: ["Connection lost", ""],
};
const BARRED = `This page may only use a microphone on this machine's own address (http://localhost
  or http://127.0.0.1) or over https. Type instead, or open it there.`;

const TEMPLATE = `
<link rel="stylesheet" href="${here("live.css")}">
<section class="live" data-state="off">
  <div class="side">
    <button type="button" class="go" aria-pressed="false">
      <svg viewBox="0 0 24 24" aria-hidden="true"><rect x="9" y="3" width="6" height="11" rx="3"/>
      <path d="M5.5 11a6.5 6.5 0 0 0 13 0M12 17.5V21"/></svg><span>Start talking</span>
    </button>
    <div class="state" role="status" aria-live="polite"><b></b><span></span></div>
    <div class="meter" role="meter" aria-label="Level of the microphone" aria-valuemin="0"
      aria-valuemax="100" aria-valuenow="0"><i></i></div>
    <button type="button" class="hold" hidden>Hold to talk</button>
    <label class="switch"><input type="checkbox" class="push"><i></i>Push to talk</label>
    <label class="switch"><input type="checkbox" class="head"><i></i>I wear headphones</label>
    <label class="device">Microphone<select></select></label>
    <p class="echo"></p>
  </div>
  <div class="main">
    <p class="trouble" role="alert" hidden></p>
    <ol class="talk" aria-live="polite"></ol>
    <form><input name="text" aria-label="Message" placeholder="Or type" autocomplete="off"
      maxlength="2000"><button>Send</button></form>
    <p class="latency"></p>
  </div>
</section>`;

export function mount({ element, trigger }) {
  const host = element.querySelector(".live-host");
  if (!host.shadowRoot) new Live(host, trigger);
}

class Live {
  constructor(host, trigger) {
    this.host = host;
    this.trigger = trigger;
    this.root = host.attachShadow({ mode: "open" });
    this.root.innerHTML = TEMPLATE;
    this.items = new Map(); // id -> element of what was said
    this.parts = {};
    this.find(".go").onclick = () => (this.stream ? this.stop() : this.start());
    this.find(".push").onchange = () => this.configure();
    this.find(".head").onchange = () => this.stream && this.openMicrophone();
    this.find("select").onchange = () => this.stream && this.openMicrophone();
    this.find("form").onsubmit = (event) => this.type(event);
    this.holding(this.find(".hold"));
    this.show("off");
    if (!window.isSecureContext || !navigator.mediaDevices) {
      this.find(".go").disabled = true;
      this.trouble(BARRED);
    }
    window.addEventListener("pagehide", () => this.stop());
    navigator.mediaDevices?.addEventListener("devicechange", () => this.stream && this.devices());
    // Gradio takes the node away without telling anybody.
    setInterval(() => this.context && !host.isConnected && this.stop(), 500);
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  get push() {
    return this.find(".push").checked;
  }

  // ---- start and stop ----

  async start() {
    this.show("asking");
    this.trouble("");
    try {
      if (!this.context) await this.openSound();
      await this.openMicrophone();
    } catch (error) {
      this.stop();
      this.trouble(why(error));
      return;
    }
    const button = this.find(".go");
    button.setAttribute("aria-pressed", "true");
    button.querySelector("span").textContent = "Stop";
    if (this.session) this.on_ready({});
    else this.show("connecting");
  }

  // The context, the player and the socket; in a click, so that sound may play.
  async openSound() {
    const context = (this.context = new AudioContext({ sampleRate: 24000 }));
    await context.resume();
    await context.audioWorklet.addModule(here("worklet.js"));
    if (this.context !== context) return; // stopped meanwhile
    this.player = new AudioWorkletNode(context, "player", {
      numberOfInputs: 0,
      outputChannelCount: [1],
      processorOptions: { buffer: BUFFER },
    });
    this.player.connect(context.destination);
    this.worker = new Worker(here("socket.js"), { type: "module" });
    this.worker.onmessage = ({ data }) => this.take(data);
    const wire = new MessageChannel();
    this.player.port.postMessage({ socket: wire.port1 }, [wire.port1]);
    const url = here("../v1/realtime");
    url.protocol = url.protocol.replace("http", "ws");
    const begin = { kind: "begin", url: url.href, player: wire.port2, ...this.settings() };
    this.worker.postMessage(begin, [wire.port2]);
  }

  async openMicrophone() {
    const device = this.find("select").value;
    const clean = !this.find(".head").checked;
    const audio = {
      channelCount: 1,
      echoCancellation: clean,
      noiseSuppression: clean,
      autoGainControl: clean,
      ...(device ? { deviceId: { exact: device } } : {}),
    };
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    if (!this.context) return stream.getTracks().forEach((track) => track.stop());
    this.closeMicrophone();
    this.stream = stream;
    const [track] = stream.getAudioTracks();
    track.onended = () => {
      this.find("select").value = "";
      this.openMicrophone().catch((error) => this.trouble(why(error)));
    };
    this.capture = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    this.capture.port.onmessage = ({ data }) => this.level(data.peak);
    const wire = new MessageChannel();
    this.capture.port.postMessage({ out: wire.port1 }, [wire.port1]);
    this.worker.postMessage({ kind: "capture", port: wire.port2 }, [wire.port2]);
    this.source = this.context.createMediaStreamSource(stream);
    this.source.connect(this.capture);
    await this.devices();
    this.tellEcho(track.getSettings());
  }

  closeMicrophone() {
    const tracks = this.stream?.getTracks() ?? [];
    for (const track of tracks) {
      track.onended = null;
      track.stop();
    }
    this.source?.disconnect();
    this.stream = this.source = this.capture = null;
  }

  stop() {
    this.closeMicrophone();
    this.worker?.postMessage({ kind: "close" });
    this.context?.close();
    this.context = this.worker = this.player = null;
    this.session = false;
    const button = this.find(".go");
    button.setAttribute("aria-pressed", "false");
    button.querySelector("span").textContent = "Start talking";
    this.find(".hold").hidden = true;
    this.level(0);
    this.show("off");
  }

  // ---- what can be set ----

  settings() {
    const detection = this.push ? null : { type: "semantic_vad" };
    const input = { turn_detection: detection, transcription: {} };
    const session = { type: "realtime", audio: { input }, x_playback: true };
    return { settings: session, open: !this.push };
  }

  configure() {
    this.worker?.postMessage({ kind: "settings", ...this.settings() });
    this.find(".hold").hidden = !(this.push && this.context);
    if (["listening", "ready"].includes(this.state)) this.rest();
  }

  async devices() {
    const select = this.find("select");
    const found = await navigator.mediaDevices.enumerateDevices();
    const inputs = found.filter((one) => one.kind === "audioinput" && one.deviceId !== "default");
    const chosen = select.value;
    select.replaceChildren(
      new Option("the system's choice", ""),
      ...inputs.map((one, n) => new Option(one.label || `Microphone ${n + 1}`, one.deviceId)),
    );
    select.value = inputs.some((one) => one.deviceId === chosen) ? chosen : "";
  }

  tellEcho({ echoCancellation }) {
    this.find(".echo").textContent = echoCancellation
      ? `The browser's echo cancellation is on: the reply from your loudspeakers is not taken for
         your voice.`
      : `Echo cancellation is off. Without headphones the reply would interrupt itself.`;
  }

  holding(button) {
    const down = (event) => {
      if (event.type === "keydown" && (event.key !== " " || event.repeat)) return;
      event.preventDefault();
      button.classList.add("down");
      this.worker?.postMessage({ kind: "press" });
      this.show("hearing");
    };
    const up = (event) => {
      if (event.type === "keyup" && event.key !== " ") return;
      if (!button.classList.contains("down")) return;
      button.classList.remove("down");
      this.worker?.postMessage({ kind: "release" });
      this.rest();
    };
    button.onpointerdown = (event) => {
      button.setPointerCapture(event.pointerId);
      down(event);
    };
    button.onpointerup = button.onpointercancel = button.onblur = button.onkeyup = up;
    button.onkeydown = down;
  }

  async type(event) {
    event.preventDefault();
    const text = event.target.text.value.trim();
    if (!text) return;
    if (!this.context) await this.openSound();
    this.worker.postMessage({ kind: "text", text });
    this.line(`typed ${this.items.size}`, "you").textContent = text;
    event.target.reset();
  }

  // ---- what is shown ----

  show(state, more) {
    this.state = state;
    const [name, about] = STATES[state];
    this.find(".live").dataset.state = state;
    this.find(".state b").textContent = name;
    this.find(".state span").textContent = more ?? about;
  }

  rest() {
    this.show(!this.stream ? "off" : this.push ? "ready" : "listening");
  }

  level(peak) {
    const db = 20 * Math.log10(peak + 1e-5);
    const share = Math.max(0, Math.min(1, (db + 60) / 55));
    const meter = this.find(".meter");
    meter.setAttribute("aria-valuenow", Math.round(share * 100));
    meter.firstElementChild.style.transform = `scaleX(${share})`;
    this.find(".go").style.setProperty("--level", share);
  }

  trouble(text) {
    this.find(".trouble").textContent = text;
    this.find(".trouble").hidden = !text;
  }

  // The line of an item, made when first asked for.
  line(id, who) {
    let line = this.items.get(id);
    if (!line) {
      line = document.createElement("li");
      line.className = who;
      line.append(document.createElement("p"), document.createElement("small"));
      this.items.set(id, line);
      const list = this.find(".talk");
      list.append(line);
      while (list.children.length > 200) list.firstElementChild.remove();
      list.scrollTop = list.scrollHeight;
    }
    return line.firstElementChild;
  }

  note(text) {
    this.line(`note ${this.items.size}`, "note").textContent = text;
  }

  remark(id, text) {
    const line = this.items.get(id);
    if (line) line.lastElementChild.textContent = text;
  }

  take(data) {
    const by = { "player.started": "started", "player.ended": "over", "player.gap": "gap" };
    const name = by[data.kind] ?? data.kind.replace("player.", "");
    this.host.dispatchEvent(new CustomEvent("live", { detail: data }));
    this[`on_${name}`]?.(data);
  }

  on_ready({ again }) {
    this.session = true;
    this.trouble("");
    if (again) this.note("Connected again. The server has forgotten what was said before.");
    this.find(".hold").hidden = !(this.push && this.stream);
    this.rest();
  }

  on_lost({ wait, tries, code }) {
    const about = code === 1012 ? "The server is restarting." : "The server does not answer.";
    const when = `Trying again in ${(wait / 1000).toFixed(1)} s (${tries}).`;
    this.session = false;
    this.show("lost", `${about} ${when}`);
    if (tries === 1) this.note("The connection was lost.");
  }

  on_hearing() {
    this.show("hearing");
  }

  on_heard() {
    this.show("thinking");
  }

  on_committed({ item }) {
    this.line(item, "you").textContent = "…";
  }

  on_transcript({ item, text }) {
    this.line(item, "you").textContent = text.trim() || "(nothing understood)";
  }

  on_answering() {
    this.parts = {};
    this.show("answering");
  }

  on_text({ item, text }) {
    this.line(item, "it").append(text);
    const list = this.find(".talk");
    list.scrollTop = list.scrollHeight;
  }

  on_latency({ item, silence, model }) {
    this.line(item, "it");
    this.parts = { item, silence, model };
  }

  on_started({ item, after }) {
    this.line(item, "it");
    if (after === null) return;
    const delay = after + 1000 * (this.context?.outputLatency ?? 0);
    this.remark(item, `after ${(delay / 1000).toFixed(2)} s`);
    if (this.parts.item !== item) return;
    const { silence, model } = this.parts;
    const rest = Math.max(0, delay - silence - model);
    this.find(".latency").textContent =
      `Last answer ${delay.toFixed(0)} ms after your last word: ${silence.toFixed(0)} ms to be ` +
      `sure you had finished, ${model.toFixed(0)} ms model, ${rest.toFixed(0)} ms network and buffer.`;
  }

  on_flushed({ item, played }) {
    if (!this.items.has(item)) return;
    this.remark(item, `interrupted after ${(played / 24000).toFixed(1)} s`);
    this.items.get(item).classList.add("cut");
  }

  on_over({ item }) {
    if (this.state === "answering") this.rest();
    this.tell(item);
  }

  on_gap({ item, gaps }) {
    if (gaps > 1) this.remark(item, `sound came late ${gaps} times`);
  }

  on_done({ status, reason }) {
    if (status === "failed") this.rest();
    if (status === "incomplete") this.note(`The answer was cut off (${reason}).`);
  }

  on_forgot({ turns }) {
    this.note(`The oldest ${turns === 1 ? "turn was" : `${turns} turns were`} dropped to make room.`);
  }

  on_error({ text }) {
    this.trouble(text);
  }

  // To Python, where somebody listens.
  tell(item) {
    this.trigger?.("submit", { item, text: this.items.get(item)?.firstElementChild.textContent });
  }
}

function why(error) {
  const known = {
    NotAllowedError: "The browser did not allow the microphone. Allow it in the address bar, or type.",
    NotFoundError: "There is no microphone. Plug one in, or type.",
    NotReadableError: "Another program keeps the microphone. Close it and try again.",
  };
  return known[error.name] ?? `The microphone cannot be used: ${error.message}`;
}
