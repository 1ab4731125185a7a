"""The inner loops of scoring as LLVM's assembly language, for one shape. Knows no Python objects.

Every function works on LANES vectors at once (the query's tokens, or centroids), laid out in a
"panel": [dim / 4][LANES][4] signed bytes, so that one instruction multiplies four dimensions of a
stored row with those of 16 lanes and adds them up. What follows a product stays in registers: a
document's maxima never touch memory, which is what other MaxSim loops spend their time on.

A stored row is: codes of `bits` bits, unsigned, then a float32 scale; a value is
scale * (code - offset). With fewer than 8 bits byte j holds dimension j in its lowest bits, and
dimension j + (bytes of the codes) in the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LANES = 32  # of a panel: two registers of 16 numbers
WIDTH = 16
MINUS_INFINITY = "0xFFF0000000000000"


@dataclass(frozen=True)
class Shape:
    """What the code is made for: `codes` bytes of codes a row, `bits` each; registers of 64 bytes,
    or (not wide) of 32."""

    codes: int
    bits: int
    wide: bool = True

    @property
    def step(self) -> int:
        """Rows at once: their sums in flight hide the multiplication's latency, if all fit."""
        return 4 if self.wide else 2

    @property
    def dims(self) -> int:
        """Dimensions, padded to the row."""
        return self.codes * 8 // self.bits

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return self.codes + 4


# How four unsigned bytes are multiplied with four signed ones and added to each of 16 sums.
WIDE = """
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <16 x i32>, <16 x i32>)

define internal <16 x i32> @dot(<16 x i32> %sum, <16 x i32> %row, <16 x i32> %panel) alwaysinline {
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(
      <16 x i32> %sum, <16 x i32> %row, <16 x i32> %panel)
  ret <16 x i32> %r
}
"""
NARROW = """
declare <8 x i32> @llvm.x86.avx512.vpdpbusd.256(<8 x i32>, <8 x i32>, <8 x i32>)

define internal <16 x i32> @dot(<16 x i32> %sum, <16 x i32> %row, <16 x i32> %panel) alwaysinline {
HALVES
  %r = shufflevector <8 x i32> %r0, <8 x i32> %r1, <16 x i32> ALL
  ret <16 x i32> %r
}
"""


def constant(kind: str, values: Iterable[object]) -> str:
    return "<" + ", ".join(f"{kind} {value}" for value in values) + ">"


def dot(shape: Shape) -> str:
    """The definition of @dot: one instruction for 64 bytes, or two for 32 each."""
    if shape.wide:
        return WIDE
    halves = ""
    for half in range(2):
        which = constant("i32", range(8 * half, 8 * half + 8))
        for name in ("sum", "row", "panel"):
            halves += (
                f"  %{name}{half} = shufflevector <16 x i32> %{name}, <16 x i32> poison, "
                f"<8 x i32> {which}\n"
            )
        halves += (
            f"  %r{half} = call <8 x i32> @llvm.x86.avx512.vpdpbusd.256("
            f"<8 x i32> %sum{half}, <8 x i32> %row{half}, <8 x i32> %panel{half})\n"
        )
    return NARROW.replace("HALVES", halves).replace("ALL", constant("i32", range(16)))


def splat(to: str, value: str, kind: str, count: int = WIDTH) -> str:
    """`to` = `count` copies of `value`."""
    return (
        f"  {to}.1 = insertelement <{count} x {kind}> poison, {kind} {value}, i64 0\n"
        f"  {to} = shufflevector <{count} x {kind}> {to}.1, <{count} x {kind}> poison, "
        f"<{count} x i32> zeroinitializer\n"
    )


def load(to: str, kind: str, base: str, element: str, place: int | str, align: int) -> str:
    return (
        f"  {to}.p = getelementptr {element}, ptr {base}, i64 {place}\n"
        f"  {to} = load {kind}, ptr {to}.p, align {align}\n"
    )


def rows(shape: Shape) -> str:
    """%p0.. point at as many rows as a step from %t on; past the last (%end - 1) they repeat it."""
    out = ""
    for j in range(shape.step):
        out += f"""
  %n{j} = add i64 %t, {j}
  %in{j} = icmp slt i64 %n{j}, %final
  %i{j} = select i1 %in{j}, i64 %n{j}, i64 %final
  %o{j} = mul i64 %i{j}, {shape.row}
  %p{j} = getelementptr i8, ptr %rows, i64 %o{j}
  %scale{j} = getelementptr i8, ptr %p{j}, i64 {shape.codes}
"""
    return out


def unpacked(shape: Shape) -> str:
    """%c0.. point at the codes of the rows, a byte each."""
    kind, parts = f"<{shape.codes} x i8>", 8 // shape.bits
    out = ""
    for j in range(shape.step):
        if parts == 1:
            out += f"  %c{j} = getelementptr i8, ptr %p{j}, i64 0\n"
            continue
        out += f"  %c{j} = getelementptr i8, ptr %room, i64 {j * shape.dims}\n"
        out += f"  %packed{j} = load {kind}, ptr %p{j}, align 1\n"
        for part in range(parts):
            moved = constant("i8", [part * shape.bits] * shape.codes)
            mask = constant("i8", [(1 << shape.bits) - 1] * shape.codes)
            out += f"""
  %moved{j}.{part} = lshr {kind} %packed{j}, {moved}
  %part{j}.{part} = and {kind} %moved{j}.{part}, {mask}
  %room{j}.{part} = getelementptr i8, ptr %c{j}, i64 {part * shape.codes}
  store {kind} %part{j}.{part}, ptr %room{j}.{part}, align 1
"""
    return out


def products(shape: Shape) -> str:
    """%v{row}.{half} = float products of the rows with the lanes of %panel: scaled, offset gone.

    Wants %offset0 and %offset1: what is to be added to the sums of the codes, lane by lane.
    """
    out, groups = "", shape.dims // 4
    for g in range(groups):
        for h in range(2):
            place = (g * 2 + h) * WIDTH
            out += load(f"%panel{g}.{h}", "<16 x i32>", "%panel", "i32", place, 4)
        for j in range(shape.step):
            out += load(f"%four{g}.{j}", "i32", f"%c{j}", "i32", g, 1)
            out += splat(f"%all{g}.{j}", f"%four{g}.{j}", "i32")
            for h in range(2):
                before = f"%sum{g - 1}.{j}.{h}" if g else "zeroinitializer"
                out += (
                    f"  %sum{g}.{j}.{h} = call <16 x i32> @dot(<16 x i32> {before}, "
                    f"<16 x i32> %all{g}.{j}, <16 x i32> %panel{g}.{h})\n"
                )
    for j in range(shape.step):
        out += f"  %scalar{j} = load float, ptr %scale{j}, align 1\n"
        out += splat(f"%scales{j}", f"%scalar{j}", "float")
        for h in range(2):
            out += f"""
  %f{j}.{h} = sitofp <16 x i32> %sum{groups - 1}.{j}.{h} to <16 x float>
  %g{j}.{h} = fadd <16 x float> %f{j}.{h}, %offset{h}
  %v{j}.{h} = fmul <16 x float> %g{j}.{h}, %scales{j}
"""
    return out


def lanes(name: str, base: str) -> str:
    """%{name}0 and %{name}1 = the 32 floats at `base`."""
    return "".join(
        load(f"%{name}{h}", "<16 x float>", base, "float", h * WIDTH, 4) for h in range(2)
    )


def larger(to: str, a: str, b: str) -> str:
    return (
        f"  {to}.c = fcmp ogt <16 x float> {a}, {b}\n"
        f"  {to} = select <16 x i1> {to}.c, <16 x float> {a}, <16 x float> {b}\n"
    )


def documents(body: str, prepare: str = "") -> str:
    """A loop over documents %d from %first to %last: rows %start to %end, score into %out."""
    return f"""
entry:
{prepare}
  br label %document
document:
  %d = phi i64 [ %first, %entry ], [ %next, %done ]
  %more = icmp slt i64 %d, %last
  br i1 %more, label %open, label %exit
open:
{load("%start", "i64", "%starts", "i64", "%d", 8)}
{load("%end", "i64", "%ends", "i64", "%d", 8)}
  %final = sub i64 %end, 1
  %filled = icmp slt i64 %start, %end
  br i1 %filled, label %row, label %done
row:
{body}
done:
  %result = phi float [ {MINUS_INFINITY}, %open ], [ %score, %close ]
  %at = getelementptr float, ptr %out, i64 %d
  store float %result, ptr %at, align 4
  %next = add i64 %d, 1
  br label %document
exit:
  ret void
"""


def maxsim(shape: Shape) -> str:
    """out[d] = sum over lanes of weight * max over the document's rows of their product."""
    worst = constant("float", [MINUS_INFINITY] * WIDTH)
    body, last = "  %t = phi i64 [ %start, %open ], [ %t.next, %row ]\n", shape.step - 1
    for h in range(2):
        body += f"  %max{h} = phi <16 x float> [ {worst}, %open ], [ %top{last}.{h}, %row ]\n"
    body += rows(shape) + unpacked(shape) + products(shape)
    for j in range(shape.step):
        for h in range(2):
            body += larger(f"%top{j}.{h}", f"%v{j}.{h}", f"%top{j - 1}.{h}" if j else f"%max{h}")
    body += f"""
  %t.next = add i64 %t, {shape.step}
  %again = icmp slt i64 %t.next, %end
  br i1 %again, label %row, label %close
close:
  %w0 = fmul <16 x float> %top{last}.0, %weight0
  %w1 = fmul <16 x float> %top{last}.1, %weight1
  %w = fadd <16 x float> %w0, %w1
  %score = call reassoc float @llvm.vector.reduce.fadd.v16f32(float 0.0, <16 x float> %w)
  br label %done
"""
    room = f"  %room = alloca [{shape.step * shape.dims} x i8], align 64\n"
    prepare = room + lanes("offset", "%offsets") + lanes("weight", "%weights")
    return f"""
{dot(shape)}
declare float @llvm.vector.reduce.fadd.v16f32(float, <16 x float>)

define void @maxsim(ptr %rows, ptr %starts, ptr %ends, i64 %first, i64 %last,
                    ptr %panel, ptr %offsets, ptr %weights, ptr noalias %out) {{
{documents(body, prepare)}
}}
"""


def nearest(shape: Shape) -> str:
    """out[t] = index of the lane of all panels with the largest product, rows first to last."""
    size = shape.dims * LANES  # bytes of a panel
    worst = constant("float", [MINUS_INFINITY] * WIDTH)
    body = ""
    for j in range(shape.step):
        for h in range(2):
            new = f"%top{j}.{h}"
            old = f"%max{j}.{h}"
            body += f"  %x{j}.{h} = fmul <16 x float> %v{j}.{h}, %weight{h}\n"
            body += f"  {new}.c = fcmp ogt <16 x float> %x{j}.{h}, {old}\n"
            body += (
                f"  {new} = select <16 x i1> {new}.c, <16 x float> %x{j}.{h}, "
                f"<16 x float> {old}\n"
                f"  {new}.i = select <16 x i1> {new}.c, <16 x i32> %number, "
                f"<16 x i32> {old}.i\n"
            )
    phis = ""
    for j in range(shape.step):
        for h in range(2):
            phis += (
                f"  %max{j}.{h} = phi <16 x float> [ {worst}, %row ], [ %top{j}.{h}, %each ]\n"
                f"  %max{j}.{h}.i = phi <16 x i32> [ zeroinitializer, %row ], "
                f"[ %top{j}.{h}.i, %each ]\n"
            )
    return f"""
{dot(shape)}
declare float @llvm.vector.reduce.fmax.v16f32(<16 x float>)
declare i32 @llvm.vector.reduce.umin.v16i32(<16 x i32>)

define void @nearest(ptr %rows, i64 %first, i64 %last, ptr %panels, ptr %all_offsets,
                     ptr %all_weights, i64 %count, ptr noalias %out) {{
entry:
  %room = alloca [{shape.step * shape.dims} x i8], align 64
  %final = sub i64 %last, 1
  %filled = icmp slt i64 %first, %last
  br i1 %filled, label %row, label %exit
row:
  %t = phi i64 [ %first, %entry ], [ %t.next, %close ]
{rows(shape)}
{unpacked(shape)}
  br label %each
each:
  %k = phi i64 [ 0, %row ], [ %k.next, %each ]
{phis}
  %k.bytes = mul i64 %k, {size}
  %panel = getelementptr i8, ptr %panels, i64 %k.bytes
  %k.lanes = mul i64 %k, {LANES}
  %offsets = getelementptr float, ptr %all_offsets, i64 %k.lanes
  %weights = getelementptr float, ptr %all_weights, i64 %k.lanes
  %k.small = trunc i64 %k to i32
{splat("%number", "%k.small", "i32")}
{lanes("offset", "%offsets")}
{lanes("weight", "%weights")}
{products(shape)}
{body}
  %k.next = add i64 %k, 1
  %k.again = icmp slt i64 %k.next, %count
  br i1 %k.again, label %each, label %close
close:
{"".join(_winner(j) for j in range(shape.step))}
  %t.next = add i64 %t, {shape.step}
  %again = icmp slt i64 %t.next, %last
  br i1 %again, label %row, label %exit
exit:
  ret void
}}
"""


def _winner(j: int) -> str:
    """Store the number of the lane that row j's best product was found in."""
    out = larger(f"%best{j}", f"%top{j}.0", f"%top{j}.1")
    out += f"  %m{j} = call nnan float @llvm.vector.reduce.fmax.v16f32(<16 x float> %best{j})\n"
    out += splat(f"%ms{j}", f"%m{j}", "float")
    for h in range(2):
        number = constant("i32", [h * WIDTH + lane for lane in range(WIDTH)])
        none = constant("i32", [-1] * WIDTH)
        out += f"""
  %lane{j}.{h}.a = mul <16 x i32> %top{j}.{h}.i, {constant("i32", [LANES] * WIDTH)}
  %lane{j}.{h}.b = add <16 x i32> %lane{j}.{h}.a, {number}
  %lane{j}.{h}.c = fcmp oeq <16 x float> %top{j}.{h}, %ms{j}
  %lane{j}.{h}.d = select <16 x i1> %lane{j}.{h}.c, <16 x i32> %lane{j}.{h}.b, <16 x i32> {none}
  %lane{j}.{h} = call i32 @llvm.vector.reduce.umin.v16i32(<16 x i32> %lane{j}.{h}.d)
"""
    return (
        out
        + f"""
  %first{j} = icmp ult i32 %lane{j}.0, %lane{j}.1
  %won{j} = select i1 %first{j}, i32 %lane{j}.0, i32 %lane{j}.1
  %at{j} = getelementptr i32, ptr %out, i64 %i{j}
  store i32 %won{j}, ptr %at{j}, align 4
"""
    )


def table(shape: Shape) -> str:
    """out[t][lane] = the product in 255ths, from 0 to 255, rows first to last."""
    body = ""
    for j in range(shape.step):
        for h in range(2):
            v = f"%v{j}.{h}"
            body += f"""
  {v}.w = fmul <16 x float> {v}, %weight{h}
  {v}.b = fmul <16 x float> {v}.w, {constant("float", ["255.0"] * WIDTH)}
  {v}.r = fadd <16 x float> {v}.b, {constant("float", ["0.5"] * WIDTH)}
  {v}.i = fptosi <16 x float> {v}.r to <16 x i32>
  {v}.n = icmp slt <16 x i32> {v}.i, zeroinitializer
  {v}.p = select <16 x i1> {v}.n, <16 x i32> zeroinitializer, <16 x i32> {v}.i
  {v}.m = icmp slt <16 x i32> {v}.p, {constant("i32", [255] * WIDTH)}
  {v}.c = select <16 x i1> {v}.m, <16 x i32> {v}.p, <16 x i32> {constant("i32", [255] * WIDTH)}
  {v}.u = trunc <16 x i32> {v}.c to <16 x i8>
  %to{j}.{h}.n = mul i64 %i{j}, {LANES}
  %to{j}.{h}.m = add i64 %to{j}.{h}.n, {h * WIDTH}
  %to{j}.{h} = getelementptr i8, ptr %out, i64 %to{j}.{h}.m
  store <16 x i8> {v}.u, ptr %to{j}.{h}, align 1
"""
    return f"""
{dot(shape)}

define void @table(ptr %rows, i64 %first, i64 %last, ptr %panel, ptr %offsets, ptr %weights,
                   ptr noalias %out) {{
entry:
  %room = alloca [{shape.step * shape.dims} x i8], align 64
{lanes("offset", "%offsets")}
{lanes("weight", "%weights")}
{over_rows(shape, body)}
}}
"""


def over_rows(shape: Shape, body: str) -> str:
    """From the entry on: a loop over rows %first to %last with their products."""
    return f"""
  %final = sub i64 %last, 1
  %filled = icmp slt i64 %first, %last
  br i1 %filled, label %row, label %exit
row:
  %t = phi i64 [ %first, %entry ], [ %t.next, %row ]
{rows(shape)}
{unpacked(shape)}
{products(shape)}
{body}
  %t.next = add i64 %t, {shape.step}
  %again = icmp slt i64 %t.next, %last
  br i1 %again, label %row, label %exit
exit:
  ret void
"""


def products_alone(shape: Shape) -> str:
    """out[t] = the product with lane 0, rows first to last."""
    body = ""
    for j in range(shape.step):
        body += f"""
  %lane{j} = extractelement <16 x float> %v{j}.0, i64 0
  %product{j} = fmul float %lane{j}, %weight
  %at{j} = getelementptr float, ptr %out, i64 %i{j}
  store float %product{j}, ptr %at{j}, align 4
"""
    return f"""
{dot(shape)}

define void @products(ptr %rows, i64 %first, i64 %last, ptr %panel, ptr %offsets, ptr %weights,
                      ptr noalias %out) {{
entry:
  %room = alloca [{shape.step * shape.dims} x i8], align 64
{lanes("offset", "%offsets")}
  %weight = load float, ptr %weights, align 4
{over_rows(shape, body)}
}}
"""


def interaction() -> str:
    """out[d] = sum over lanes of max over the document's codes of table[code][lane], bytes."""
    body = f"""
  %t = phi i64 [ %start, %open ], [ %t.next, %row ]
  %max = phi <32 x i8> [ zeroinitializer, %open ], [ %top, %row ]
{load("%code", "i16", "%codes", "i16", "%t", 2)}
  %wide = zext i16 %code to i64
{load("%bytes", "<32 x i8>", "%table", "<32 x i8>", "%wide", 1)}
  %top.c = icmp ugt <32 x i8> %bytes, %max
  %top = select <32 x i1> %top.c, <32 x i8> %bytes, <32 x i8> %max
  %t.next = add i64 %t, 1
  %again = icmp slt i64 %t.next, %end
  br i1 %again, label %row, label %close
close:
  %summed = zext <32 x i8> %top to <32 x i32>
  %total = call i32 @llvm.vector.reduce.add.v32i32(<32 x i32> %summed)
  %score = sitofp i32 %total to float
  br label %done
"""
    return f"""
declare i32 @llvm.vector.reduce.add.v32i32(<32 x i32>)

define void @interaction(ptr %codes, ptr %starts, ptr %ends, i64 %first, i64 %last,
                         ptr %table, ptr noalias %out) {{
{documents(body)}
}}
"""
