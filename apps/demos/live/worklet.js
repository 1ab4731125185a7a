// Two processors on the audio thread, 24 kHz, mono: Capture cuts the microphone into chunks of 20 ms,
// Player plays what comes without gaps and counts what was played. Their ports lead to socket.js.

const CHUNK = 480; // samples: 20 ms
const REPORT = 960; // 40 ms
const FADE = 128; // 5 ms
const STEP = 1920; // 80 ms: a frame of a reply
const MOST = 5 * STEP; // no more than 400 ms are held before playing

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.chunk = new Int16Array(CHUNK);
    this.filled = 0;
    this.peak = 0;
    this.port.onmessage = ({ data }) => (this.out = data.out);
  }

  process([[input]]) {
    if (!input) return true;
    for (const sample of input) {
      const loud = Math.max(-1, Math.min(1, sample));
      this.peak = Math.max(this.peak, Math.abs(loud));
      this.chunk[this.filled++] = loud * 32767;
      if (this.filled === CHUNK) this.send();
    }
    return true;
  }

  send() {
    // The frame of the sample after the chunk, within one block of 128.
    const message = { samples: this.chunk, frame: currentFrame, peak: this.peak };
    this.port.postMessage({ peak: this.peak });
    if (this.out) this.out.postMessage(message, [this.chunk.buffer]);
    this.chunk = new Int16Array(CHUNK);
    this.filled = this.peak = 0;
  }
}

class Player extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.first = this.target = processorOptions.buffer; // samples held before playing
    this.queue = []; // {item, samples}, samples null where an item ends
    this.held = 0; // samples in the queue
    this.at = 0; // of the first chunk, so many are played
    this.played = 0; // of the item at the head
    this.item = null;
    this.playing = false;
    this.gaps = 0;
    this.fade = 0;
    this.last = 0;
    this.told = 0;
    this.port.onmessage = ({ data }) => {
      this.socket = data.socket;
      this.socket.onmessage = ({ data }) => this.take(data);
    };
  }

  take({ kind, item, samples }) {
    if (kind === "audio") {
      if (samples.length === 0) return; // would never be played to its end
      this.queue.push({ item, samples });
      this.held += samples.length;
    } else if (kind === "end") {
      this.queue.push({ item, samples: null });
    } else if (kind === "flush") {
      this.flush();
    }
  }

  // Stop now. Where nothing was played and nothing waits, there is nothing to stop.
  flush() {
    const item = this.item ?? this.queue[0]?.item;
    if (item === undefined) return;
    if (this.playing) this.fade = FADE;
    this.socket.postMessage({ kind: "flushed", item, played: this.played, frame: currentFrame });
    this.queue = [];
    this.held = this.at = this.played = 0;
    this.item = null;
    this.playing = false;
    this.target = this.first;
  }

  process(_, [[output]]) {
    for (let i = 0; i < output.length; i++) output[i] = this.next();
    if (this.item !== null && this.played - this.told >= REPORT) this.report("played");
    return true;
  }

  next() {
    if (this.fade > 0) return (this.last * this.fade--) / FADE;
    this.finishItems();
    if (!this.playing && !this.enough()) return 0;
    const head = this.queue[0];
    if (head === undefined) return this.dry();
    if (!this.playing || this.item === null) this.begin(head.item);
    this.last = head.samples[this.at++];
    this.played++;
    this.held--;
    if (this.at === head.samples.length) {
      this.queue.shift();
      this.at = 0;
    }
    return this.last;
  }

  // Whether enough is held to begin: the target, or all of an item.
  enough() {
    return this.held >= this.target || (this.held > 0 && this.queue.some((q) => q.samples === null));
  }

  begin(item) {
    this.playing = true;
    if (this.item === item) return; // it only ran dry
    this.item = item;
    this.played = this.told = 0;
    this.socket.postMessage({ kind: "started", item, frame: currentFrame });
  }

  finishItems() {
    while (this.queue.length && this.queue[0].samples === null) {
      if (this.item !== null) this.report("ended");
      this.item = null;
      this.played = 0;
      this.target = this.first;
      this.playing = this.held > 0;
      this.queue.shift();
    }
  }

  // The next frame is late: hold more from now on.
  dry() {
    if (this.item !== null) {
      this.gaps++;
      this.target = Math.min(this.target + STEP, MOST);
      this.report("gap");
    }
    this.playing = false;
    return 0;
  }

  report(kind) {
    this.told = this.played;
    const { item, played, gaps } = this;
    this.socket.postMessage({ kind, item, played, gaps, frame: currentFrame });
  }
}

registerProcessor("capture", Capture);
registerProcessor("player", Player);
