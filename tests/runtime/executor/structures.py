"""Structures of small models, written by hand in the form that tracing gives them."""

from __future__ import annotations

LAYER_BLOCKS = 2  # attention, MLP


def llama_prelude(half: int, code: str) -> str:
    return f"""structure v1
input positions: I64[1,T]
param inv_freq: F32[{half}]
%0 = aten.unsqueeze.default(%positions, -1)
%1 = aten.to.dtype(%0, #F32)
%2 = aten.mul.Tensor(%1, @inv_freq)
%3 = aten.cat.default([%2, %2], -1)
%4 = aten.cos.default(%3)
%5 = aten.sin.default(%3)
%6 = aten.to.dtype(%4, #{code})
%7 = aten.to.dtype(%5, #{code})
%8 = aten.unsqueeze.default(%6, 1)
%9 = aten.unsqueeze.default(%7, 1)
return %8, %9
"""


def llama_embed(vocab: int, hidden: int, code: str) -> str:
    return f"""structure v1
input tokens: I64[1,T]
param embed_tokens.weight: {code}[{vocab},{hidden}]
%0 = blockc.embedding(%tokens, @embed_tokens.weight, "embed_tokens")
return %0
"""


def _rotate(x: str, name: str, half: int) -> str:
    return f"""%{name}0 = aten.mul.Tensor(%{x}, %cos)
%{name}1 = aten.slice.Tensor(%{x}, 3, 0, {half})
%{name}2 = aten.slice.Tensor(%{x}, 3, {half}, 9223372036854775807)
%{name}3 = aten.neg.default(%{name}2)
%{name}4 = aten.cat.default([%{name}3, %{name}1], -1)
%{name}5 = aten.mul.Tensor(%{name}4, %sin)
%{name}6 = aten.add.Tensor(%{name}0, %{name}5)
"""


def llama_attention(hidden: int, heads: int, kv_heads: int, size: int, eps: float, code: str) -> str:
    q, kv = heads * size, kv_heads * size
    return f"""structure v1
input x: {code}[1,T,{hidden}]
context cos: {code}[1,1,T,{size}]
context sin: {code}[1,1,T,{size}]
bind scale
bind window
bind softcap
param norm: {code}[{hidden}]
param q_proj: {code}[{q},{hidden}]
param k_proj: {code}[{kv},{hidden}]
param v_proj: {code}[{kv},{hidden}]
param o_proj: {code}[{hidden},{q}]
%n = blockc.rms_norm(%x, @norm, {eps.hex()})
%q = blockc.linear(%n, @q_proj, none, "self_attn.q_proj")
%qv = aten.reshape.default(%q, [1, T, {heads}, {size}])
%qt = aten.transpose.int(%qv, 1, 2)
%k = blockc.linear(%n, @k_proj, none, "self_attn.k_proj")
%kv = aten.reshape.default(%k, [1, T, {kv_heads}, {size}])
%kt = aten.transpose.int(%kv, 1, 2)
%v = blockc.linear(%n, @v_proj, none, "self_attn.v_proj")
%vv = aten.reshape.default(%v, [1, T, {kv_heads}, {size}])
%vt = aten.transpose.int(%vv, 1, 2)
{_rotate("qt", "q", size // 2)}{_rotate("kt", "k", size // 2)}\
%a = blockc.attention(%q6, %k6, %vt, $scale, $window, $softcap)
%f = aten.reshape.default(%a, [1, T, {q}])
%o = blockc.linear(%f, @o_proj, none, "self_attn.o_proj")
%r = aten.add.Tensor(%x, %o)
return %r
"""


def llama_mlp(hidden: int, inner: int, eps: float, code: str) -> str:
    return f"""structure v1
input x: {code}[1,T,{hidden}]
param norm: {code}[{hidden}]
param gate_proj: {code}[{inner},{hidden}]
param up_proj: {code}[{inner},{hidden}]
param down_proj: {code}[{hidden},{inner}]
%n = blockc.rms_norm(%x, @norm, {eps.hex()})
%g = blockc.linear(%n, @gate_proj, none, "mlp.gate_proj")
%s = aten.silu.default(%g)
%u = blockc.linear(%n, @up_proj, none, "mlp.up_proj")
%m = aten.mul.Tensor(%s, %u)
%d = blockc.linear(%m, @down_proj, none, "mlp.down_proj")
%r = aten.add.Tensor(%x, %d)
return %r
"""


def llama_head(vocab: int, hidden: int, eps: float, code: str) -> str:
    return f"""structure v1
input x: {code}[1,T,{hidden}]
param norm: {code}[{hidden}]
param lm_head: {code}[{vocab},{hidden}]
%s = blockc.select_rows(%x)
%n = blockc.rms_norm(%s, @norm, {eps.hex()})
%l = blockc.linear(%n, @lm_head, none, "lm_head")
return %l
"""


def gpt2_embed(vocab: int, positions: int, hidden: int, code: str) -> str:
    return f"""structure v1
input tokens: I64[1,T]
input positions: I64[1,T]
param wte: {code}[{vocab},{hidden}]
param wpe: {code}[{positions},{hidden}]
%0 = blockc.embedding(%tokens, @wte, "wte")
%1 = blockc.embedding(%positions, @wpe, "wpe")
%2 = aten.add.Tensor(%0, %1)
return %2
"""


def gpt2_layer(hidden: int, heads: int, eps: float, code: str) -> str:
    size = hidden // heads
    params = {
        "ln_1.weight": [hidden],
        "ln_1.bias": [hidden],
        "q.weight": [hidden, hidden],
        "q.bias": [hidden],
        "k.weight": [hidden, hidden],
        "k.bias": [hidden],
        "v.weight": [hidden, hidden],
        "v.bias": [hidden],
        "attn.c_proj.weight": [hidden, hidden],
        "attn.c_proj.bias": [hidden],
        "ln_2.weight": [hidden],
        "ln_2.bias": [hidden],
        "mlp.c_fc.weight": [4 * hidden, hidden],
        "mlp.c_fc.bias": [4 * hidden],
        "mlp.c_proj.weight": [hidden, 4 * hidden],
        "mlp.c_proj.bias": [hidden],
    }
    declared = "\n".join(f"param {name}: {code}[{','.join(map(str, shape))}]" for name, shape in params.items())
    heads_of = "\n".join(
        f"""%{n} = blockc.linear(%n1, @{n}.weight, @{n}.bias, "attn.{n}")
%{n}v = aten.reshape.default(%{n}, [1, T, {heads}, {size}])
%{n}t = aten.transpose.int(%{n}v, 1, 2)"""
        for n in "qkv"
    )
    return f"""structure v1
input x: {code}[1,T,{hidden}]
bind scale
{declared}
%n1 = aten.layer_norm.default(%x, [{hidden}], @ln_1.weight, @ln_1.bias, {eps.hex()})
{heads_of}
%a = blockc.attention(%qt, %kt, %vt, $scale, none, none)
%f = aten.reshape.default(%a, [1, T, {hidden}])
%o = blockc.linear(%f, @attn.c_proj.weight, @attn.c_proj.bias, "attn.c_proj")
%r = aten.add.Tensor(%x, %o)
%n2 = aten.layer_norm.default(%r, [{hidden}], @ln_2.weight, @ln_2.bias, {eps.hex()})
%h = blockc.linear(%n2, @mlp.c_fc.weight, @mlp.c_fc.bias, "mlp.c_fc")
%g = aten.gelu.default(%h, "tanh")
%d = blockc.linear(%g, @mlp.c_proj.weight, @mlp.c_proj.bias, "mlp.c_proj")
%y = aten.add.Tensor(%r, %d)
return %y
"""


def gpt2_head(vocab: int, hidden: int, eps: float, code: str) -> str:
    return f"""structure v1
input x: {code}[1,T,{hidden}]
param ln_f.weight: {code}[{hidden}]
param ln_f.bias: {code}[{hidden}]
param wte: {code}[{vocab},{hidden}]
%s = blockc.select_rows(%x)
%n = aten.layer_norm.default(%s, [{hidden}], @ln_f.weight, @ln_f.bias, {eps.hex()})
%l = blockc.linear(%n, @wte, none, "lm_head")
return %l
"""
