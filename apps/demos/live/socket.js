// The WebSocket, in a Worker, so that sound flows while the page's main thread is busy. Between the
// worklets (ports `capture` and `player`) and the server; the page is told what it may show.

const RATE = 24000;
const WAITS = [500, 1000, 2000, 4000]; // ms before tries to connect again
const BACKLOG = 1 << 20; // bytes not sent yet; beyond, the microphone's chunks are dropped

let url, player, socket;
let settings = {}; // of the next session
let closed = false;
let tries = 0;
let lost = false; // whether a conversation was broken off
let ready = false; // whether the session is as it shall be
let open = false; // whether the microphone is sent
let sent = 0; // samples sent to this session
let frame = 0; // of the last of them
let pressed = 0; // samples sent before the button was pressed
let item = null; // the reply that comes
let muted = null; // a reply that shall sound no more
let answering = false;
let waiting = null; // a message that was typed before the server was there
let ended = null; // frame where the speaker's turn ended

onmessage = ({ data }) => {
  if (data.kind === "begin") {
    ({ url, settings, player, open } = data);
    player.onmessage = ({ data }) => fromPlayer(data);
    connect();
  } else if (data.kind === "capture") {
    data.port.onmessage = ({ data }) => hear(data);
  } else if (data.kind === "settings") {
    settings = data.settings;
    open = data.open;
    send({ type: "session.update", session: settings });
  } else if (data.kind === "press") {
    interrupt();
    send({ type: "input_audio_buffer.clear" });
    open = true;
    pressed = sent;
  } else if (data.kind === "release") {
    open = false;
    ended = frame;
    if (sent - pressed < RATE / 10) return send({ type: "input_audio_buffer.clear" });
    send({ type: "input_audio_buffer.commit" });
    send({ type: "response.create" });
  } else if (data.kind === "text") {
    if (ready) ask(data.text);
    else waiting = data.text;
  } else if (data.kind === "close") {
    closed = true;
    socket?.close();
    close();
  }
};

function connect() {
  socket = new WebSocket(url, ["realtime"]);
  socket.onopen = () => {
    sent = 0;
    send({ type: "session.update", session: settings });
  };
  socket.onmessage = ({ data }) => take(JSON.parse(data));
  socket.onclose = (event) => {
    if (closed) return;
    ready = false;
    if (item !== null) player.postMessage({ kind: "end", item });
    item = muted = null;
    answering = false;
    lost ||= tries === 0;
    const wait = WAITS[Math.min(tries++, WAITS.length - 1)] * (0.8 + 0.4 * Math.random());
    postMessage({ kind: "lost", wait, tries, code: event.code });
    setTimeout(connect, wait);
  };
}

function send(event) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(event));
}

function hear({ samples, frame: at }) {
  if (!open || socket?.readyState !== WebSocket.OPEN || socket.bufferedAmount > BACKLOG) return;
  sent += samples.length;
  frame = at;
  send({ type: "input_audio_buffer.append", audio: base64(samples) });
}

function take(event) {
  const { type } = event;
  if (type === "session.updated") {
    postMessage({ kind: "ready", session: event.session, again: lost });
    tries = 0;
    ready = true;
    lost = false;
    if (waiting !== null) ask(waiting);
    waiting = null;
  } else if (type === "input_audio_buffer.speech_started") {
    const at = performance.timeOrigin + performance.now();
    stop();
    postMessage({ kind: "hearing", item: event.item_id, start: event.audio_start_ms, at });
  } else if (type === "input_audio_buffer.speech_stopped") {
    ended = frame - (sent - (event.audio_end_ms * RATE) / 1000);
    postMessage({ kind: "heard" });
  } else if (type === "input_audio_buffer.committed") {
    postMessage({ kind: "committed", item: event.item_id });
  } else if (type === "conversation.item.input_audio_transcription.completed") {
    postMessage({ kind: "transcript", item: event.item_id, text: event.transcript });
  } else if (type === "response.created") {
    answering = true;
    postMessage({ kind: "answering" });
  } else if (type === "response.output_item.added") {
    item = event.item.id;
  } else if (type === "response.output_audio_transcript.delta") {
    postMessage({ kind: "text", item: event.item_id, text: event.delta });
  } else if (type === "response.output_audio.delta") {
    if (event.item_id === muted) return;
    const samples = floats(event.delta);
    player.postMessage({ kind: "audio", item: event.item_id, samples }, [samples.buffer]);
  } else if (type === "response.output_audio.done") {
    if (event.item_id !== muted) player.postMessage({ kind: "end", item: event.item_id });
  } else if (type === "response.done") {
    answering = false;
    const { status, status_details: why } = event.response;
    postMessage({ kind: "done", status, reason: why?.reason ?? null });
  } else if (type === "x.latency") {
    postMessage({ kind: "latency", item: event.item_id, silence: event.silence_ms,
                  model: event.model_ms });
  } else if (type === "x.forgot") {
    postMessage({ kind: "forgot", turns: event.turns });
  } else if (type === "error") {
    postMessage({ kind: "error", text: event.error.message });
  }
}

function ask(text) {
  interrupt();
  ended = null;
  const content = [{ type: "input_text", text }];
  send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
  send({ type: "response.create" });
}

// Nothing more of the reply shall sound.
function stop() {
  muted = item;
  player.postMessage({ kind: "flush" });
}

// The same by a button: the server does not know yet.
function interrupt() {
  stop();
  if (answering) send({ type: "response.cancel" });
  answering = false;
}

function fromPlayer({ kind, item, played, frame: at, gaps }) {
  if (kind === "flushed") {
    const audio_end_ms = Math.floor((played * 1000) / RATE);
    send({ type: "conversation.item.truncate", item_id: item, content_index: 0, audio_end_ms });
  } else if (kind !== "started") {
    send({ type: "x.playback", item_id: item, samples: played });
  }
  const after = kind === "started" && ended !== null ? ((at - ended) * 1000) / RATE : null;
  postMessage({ kind: `player.${kind}`, item, played, frame: at, gaps, after });
}

function base64(samples) {
  const bytes = new Uint8Array(samples.buffer);
  return btoa(String.fromCharCode(...bytes)); // 960 bytes
}

function floats(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const whole = new Int16Array(bytes.buffer);
  return Float32Array.from(whole, (sample) => sample / 32768);
}
