// Puts a tap behind whatever plays, and behind the microphone: blocks of samples with the number of
// their first frame. Knows nothing of the page under test.
window.taps = { out: [], mic: [] };
window.live = [];
window.contexts = [];
const SOURCE = `registerProcessor("tap", class extends AudioWorkletProcessor {
  constructor() { super(); this.block = new Float32Array(4096); this.n = 0; }
  process([[input]]) {
    if (!this.n) this.start = currentFrame;
    this.block.set(input ?? new Float32Array(128), this.n);
    this.n += 128;
    if (this.n === 4096) {
      this.port.postMessage({ frame: this.start, samples: this.block });
      this.n = 0;
    }
    return true;
  }
});`;
const tapped = (node, name) => {
  const { context } = node;
  context.tap ??= context.audioWorklet.addModule(
    URL.createObjectURL(new Blob([SOURCE], { type: "text/javascript" })));
  context.tap.then(() => {
    const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 1 });
    tap.port.onmessage = ({ data }) => window.taps[name].push([data.frame, data.samples]);
    const mute = new GainNode(context, { gain: 0 });
    connect.call(node, tap);
    connect.call(tap, mute);
    connect.call(mute, context.destination);
  });
};
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...rest) {
  if (to instanceof AudioDestinationNode) {
    window.contexts.push(this.context);
    tapped(this, "out");
  }
  return connect.call(this, to, ...rest);
};
const source = AudioContext.prototype.createMediaStreamSource;
AudioContext.prototype.createMediaStreamSource = function (stream) {
  const node = source.call(this, stream);
  tapped(node, "mic");
  return node;
};
// What the page's socket told it, with the frame that the context had reached when it came.
const attach = Element.prototype.attachShadow;
Element.prototype.attachShadow = function (options) {
  this.addEventListener("live", ({ detail }) => {
    const entry = { ...detail };
    const context = window.contexts.at(-1);
    if (detail.at !== undefined && context) {
      const passed = performance.timeOrigin + performance.now() - detail.at; // ms since it came
      entry.at_frame = (context.currentTime - passed / 1000) * context.sampleRate;
    }
    window.live.push(entry);
  });
  return attach.call(this, options);
};
