// The other half of the talk page: plays an answer to a recording while it is still being made.
// Python sends its last chunks again and again, numbered, so that none is missed.

const here = (name) => new URL(name, import.meta.url);
const BUFFER = 3840; // samples: 160 ms

export function mount({ element, props, watch }) {
  const host = element.querySelector(".stream-host");
  if (host.dataset.mounted) return;
  host.dataset.mounted = "yes";
  const stream = new Stream(host);
  watch("chunks", () => stream.take(props.chunks));
  // A context may sound only when it was made or resumed in a click.
  document.addEventListener("click", (event) => {
    if (event.target.closest("#answer")) stream.open();
    if (event.target.closest("#hush")) stream.flush();
  });
}

class Stream {
  constructor(host) {
    this.host = host;
    this.reply = null;
    this.next = 0;
  }

  async open() {
    this.flush();
    if (this.context) return this.context.resume();
    const context = (this.context = new AudioContext({ sampleRate: 24000 }));
    this.opened = (async () => {
      await context.resume();
      await context.audioWorklet.addModule(here("worklet.js"));
      const player = new AudioWorkletNode(context, "player", {
        numberOfInputs: 0,
        outputChannelCount: [1],
        processorOptions: { buffer: BUFFER },
      });
      player.connect(context.destination);
      const wire = new MessageChannel();
      player.port.postMessage({ socket: wire.port1 }, [wire.port1]);
      wire.port2.onmessage = ({ data }) => this.tell(data);
      this.port = wire.port2;
    })();
  }

  flush() {
    this.port?.postMessage({ kind: "flush" });
  }

  async take(text) {
    if (!text || !this.context) return;
    const { reply, chunks, done } = JSON.parse(text);
    if (reply !== this.reply) {
      this.reply = reply;
      this.next = 0;
    }
    await this.opened;
    for (const { n, pcm } of chunks) {
      if (n !== this.next || reply !== this.reply) continue;
      this.next++;
      const bytes = Uint8Array.from(atob(pcm), (c) => c.charCodeAt(0));
      const samples = Float32Array.from(new Int16Array(bytes.buffer), (s) => s / 32768);
      this.port.postMessage({ kind: "audio", item: reply, samples }, [samples.buffer]);
    }
    if (done === this.next) this.port.postMessage({ kind: "end", item: reply });
  }

  tell({ kind, played }) {
    if (played === undefined) return;
    const over = { ended: "Played", flushed: "Stopped after" }[kind];
    this.host.textContent = `${over ?? "Playing"} ${(played / 24000).toFixed(1)} s`;
  }
}
