"""What each diagnostic means and what to do: the pages of ``blockc rule CODE``.

Invariant: every code of the table has a page.
"""

from __future__ import annotations

import textwrap

_PAGES: dict[str, str] = {
    "BC001": """
        The text does not have the form of a spec. The message names what was found and what could
        stand there. After an error reading goes on at the next statement, so one run shows
        several. docs/language.md describes the form; `grammar/blockc_grammar/blockc.lark` defines
        it.
        """,
    "BC002": """
        A bracket, brace or quote is opened and never closed. The message points at the opener.
        Where the indentation tells that an inner one was forgotten, that one is named. A string
        ends on its line.
        """,
    "BC003": "A file cannot be read: it does not exist, is a folder, or you may not read it.",
    "BC101": """
        A name refers to nothing: no base, fine-tune, profile, variable or value of that name is
        declared. Declarations are free in order, so it is not a matter of where they stand. Near
        names are offered.
        """,
    "BC102": """
        This kind of block has no such attribute. Near names, or the block where it belongs, are
        offered.
        """,
    "BC103": "No kind of block has this name, or it does not stand here.",
    "BC104": """
        A value has another type or unit than its place needs: a duration for a rate, a string for
        a size. Units are exact and never guessed: `8` is not `8rps`.
        """,
    "BC105": """
        A unit could mean two things: `16G` is 16GB (10^9) or 16GiB (2^30), seven percent apart.
        Write the one that you mean.
        """,
    "BC106": """
        Two declarations have the same name, or an attribute is given twice. Both places are
        shown.
        """,
    "BC107": """
        Declarations refer to each other in a circle: values, fine-tunes deriving from each other,
        or files importing each other.
        """,
    "BC108": "Something required is absent: an attribute, a name, a block, a variable's value.",
    "BC109": """
        A value has the right type and lies outside of what is allowed, such as a rate of zero.
        """,
    "BC110": """
        A name on the command line could mean several things: the same word is part of several
        blocks' names, or an app of that name exists for several tenants. They are listed.
        """,
    "BC201": """
        A model or fine-tune is not where the spec says. A base needs `config.json` and
        `*.safetensors`, a LoRA `adapter_config.json` and `*.safetensors`. Relative paths start at
        the folder of the spec.

        A hub repository is fetched by huggingface_hub, with its own settings: `hf auth login` or
        HF_TOKEN for what is private or gated, HF_HUB_CACHE for the folder, HF_HUB_OFFLINE=1 to use
        only what is there. A download that broke off goes on where it stopped. The plan records
        the commit.
        """,
    "BC202": """
        The shapes of a fine-tune's tensors do not fit the base that it names, or those of a
        checkpoint its own `config.json`. Shapes decide; a base of another name with fitting shapes
        only warns (BC210). Names and layouts are those that transformers itself would load, fused
        or split, one tensor per expert or one for all.
        """,
    "BC203": "A weight file or its index is truncated or malformed. Fetch it again.",
    "BC204": """
        Tensors of a fine-tune or checkpoint change nothing that the model has. Serving it anyway
        would silently answer as another model, so it is refused. What transformers itself drops
        for an architecture (old buffers, heads for training) may be there.
        """,
    "BC205": """
        This architecture cannot be traced exactly, or has not been tried, so its answers could
        differ. It is refused. `docs/architectures.md` lists what works, and why the rest does not.
        """,
    "BC206": """
        Pickled weights (`.bin`, `.pt`, `.pth`) run code when they are read, and are refused.
        Convert them: `AutoModel.from_pretrained(dir).save_pretrained(dir,
        safe_serialization=True)` in a sandbox.
        """,
    "BC207": """
        A field of the fine-tune's configuration changes what it computes and is not understood.
        Ignoring it could give wrong answers.
        """,
    "BC208": """
        This kind of fine-tune, or this stack of two, is not supported. Served beside shared
        weights are LoRA with its variants, IA3, VeRA, LN tuning, trainable tokens, prompt, p- and
        prefix tuning, AdapterHub's bottlenecks, vectors alone (BitFit) and full checkpoints; most
        other types of PEFT's are merged when a spec is compiled. `docs/fine-tunes.md` has the
        whole table, and why the rest is refused.
        """,
    "BC209": """
        A checkpoint is quantised in a way that is not read here: `config.json` says how, or a weight is stored as
        something else than floating-point numbers. AWQ (GEMM, 4 bits) and compressed-tensors' `pack-quantized` are
        read if compressed-tensors is installed (`pip install 'blockc[quantized]'`). For others use the unquantised
        checkpoint, and `quantize = int4` on the base where memory is short.
        """,
    "BC210": """
        An adapter names another base than the spec. Its shapes fit, so it is used: adapters carry
        no fingerprint of their base, and a copy under another name is common. An adapter that was
        trained on a 4-bit copy works on the full weights, whose values differ by that rounding.
        """,
    "BC211": """
        A checkpoint lacks tensors that the model needs, so they would be random. Fetch it again.
        So does an adapter whose classifier stands on a part that neither it nor its base holds, such
        as the pooler that a masked-language checkpoint leaves out: it was random when the adapter
        was trained, and is lost.
        """,
    "BC212": """
        The spec assumes what a fine-tune will be: `assume { ... }` in place of `weights`. A plan
        for it can be made with `--target sim`; nothing can serve it before its files exist.
        """,
    "BC213": """
        A fine-tune brings a tokenizer with tokens beyond its vocabulary: they were added, and the
        rows of table and head that were trained with them are not in its files. Without those
        tokens it is served as it is; a text that contains one is refused. If they matter, save the
        adapter again with `save_embedding_layers=True`.
        """,
    "BC301": """
        A full fine-tune changes every block of its base, so nothing is shared and it costs as
        much memory as a model of its own.
        """,
    "BC302": """
        Every term of an adapter is exactly zero: a scale of 0, or a matrix of zeros. A LoRA that
        was saved before its training has B = 0. It is served, as what it derives from.
        """,
    "BC303": """
        A fine-tune is merged into weights whose dtype is too coarse for its change: W + dW is rounded, and where dW is
        small beside W much of it is lost. Beside the weights it is applied in full.
        """,
    "BC304": """
        `merge = always` asks for weights with the fine-tune's change in them, and the base's matrices are integers
        (`quantize`): what is merged would be rounded to integers again, and most fine-tunes change less than a step.
        Beside the integers a fine-tune is applied in full, in the base's dtype. `merge = auto` leaves it there.
        """,
    "BC401": """
        The plan needs more memory than the devices offer after their reserve. The biggest
        contributors and the smallest relaxation are named. Exit code 3.
        """,
    "BC402": """
        Some lines of the spec cannot hold together: rates, targets, pins and the like, the devices. Each is
        labelled, and without any one of them the others can. Relaxations that are named were tried. Exit code 3.
        """,
    "BC403": "The solver stopped at its time limit with a plan that may not be the best.",
    "BC404": """
        Apps have a `rate`, and nothing is known of how fast the devices are: of the kind `cuda` the catalogue
        knows no rates. Memory alone decides then. Name the device's kind, or measure rates with `blockc profile`
        and compile with `--profile`.
        """,
    "BC405": """
        `policy { overload = shed }`, and the devices cannot carry all that is expected. Apps with the lowest `priority`
        are served in full, those with the highest are left out first, and apps of one priority get equal parts. The
        plan says which part of each has a place (`served`). Models whose load is left out are in memory all the same.
        `expect { slo_attainment = ... }` is judged over what has a place.
        """,
    "BC406": """
        A step takes `max_num_seqs` requests at most, and reads all weights of its device. Where tokens come faster than
        that many for each step that targets ask for, there have to be more steps. The plan counts them, so it may need
        more devices than with more places, which cost a little workspace.
        """,
    "BC501": """
        A latency target lies below what one request alone takes on these devices: one prompt, or for each token one
        sweep of the weights.
        """,
    "BC502": """
        An `expect` block does not hold: `memory_below` for the plan, or `slo_attainment` under load, which is
        simulated: under the spec's own traffic when it is compiled, under any with `blockc simulate`. Of the spec's
        traffic what the plan has no place for (`overload = shed`) is not judged. No plan was written.
        """,
    "BC503": """
        A line of a trace is not what its format asks for, or the file has none of the known formats. docs/simulate.md
        describes them. At most 20 lines are shown.
        """,
    "BC504": """
        A plan is simulated by the rates of its devices, and the catalogue has none of this kind. `cuda` stands for any
        CUDA device: name the kind, such as `h100_80g`, and compile the spec again; or measure it with `blockc profile`
        and give the result to `blockc simulate --profile`.
        """,
    "BC505": """
        A profile cannot be used: it is damaged, or of a kind of device that the plan does not have; or a step failed
        while one was measured. `blockc profile PLAN -o FILE` measures the machine that it runs on.
        """,
    "BC506": """
        A profile holds the rates of a device as steps of certain structures showed them. The plan has others: how
        well kernels do with their shapes was not measured. `blockc profile` of this plan, or of a small one with its
        structures, tells.
        """,
    "BC507": """
        `expect { slo_attainment = ... }` is judged under the spec's own traffic when it is compiled, by the rates of
        its devices, and the catalogue has none of this kind. The plan was written. `blockc simulate --profile FILE
        --fail-on expect` judges it by rates that were measured.
        """,
    "BC508": """
        The plan sends a model's hidden states from one instance to another within a step. Plans may say so, and the
        compiler makes none: a model on several devices is one instance with stages. Nothing drives such a way, and what
        the first instance alone would do says nothing of it. Compile the spec again.
        """,
    "BC509": """
        `solver { roles = auto }` lets some instances of a model read prompts for its others, where a simulation under
        the spec's own traffic says that more requests meet their targets so. That takes traffic, targets (`slo`),
        devices of which something is known, and a model in several cells that a link joins. One of these is missing;
        the plan is the same without the line.
        """,
    "BC601": """
        The plan would share what `isolation` separates. This is a bug or a plan changed by hand.
        """,
    "BC602": """
        A string looks like a secret (a token, a key, a URL with a password). A spec is reviewed
        and stored: write `secret("NAME")`, which the runtime looks up and no plan contains.
        Consider the secret leaked.
        """,
    "BC603": """
        A plan names secrets that are its tenants' keys, and `blockc serve` looks their values up when it starts and
        before it swaps to the plan: in the folder of `--secrets`, in the file that the variable `NAME_FILE` names, or
        in the variable `NAME`. One of them is in none of these, empty, too short for a key, or in two at once.
        Nothing was loaded. `blockc doctor --plan PLAN` looks at all of them.
        """,
    "BC801": """
        Something is declared and nothing uses it: often a misspelling elsewhere. A `let` or `var`
        whose name starts with `_` is left alone.
        """,
    "BC803": """
        A `# blockc: allow(...)` comment suppresses nothing on its line, or is not understood.
        """,
    "BC804": """
        The spec says something that is understood and checked, and that nothing acts on yet. The
        plan is the same without it. `# blockc: allow(BC804)` on its line says that you know.
        """,
    "BC901": "A plan file is malformed or was changed by hand. Compile it again.",
    "BC902": "A plan was written by another version of blockc. Compile it again.",
    "BC903": """
        Stored bytes do not match their digest: the disk or a copy damaged them. They are never
        used.
        """,
    "BC904": """
        The zoo lacks a block that the plan needs. Compile again, or copy the zoo along with the
        plan.
        """,
    "BC905": """
        This runtime lacks something that the plan requires. Nothing is served approximately.
        """,
    "BC906": """
        A served model answers differently from the same model run alone. Do not serve this plan.
        """,
    "BC907": """
        The beginning of a digest, or a path, names nothing that the zoo holds, or more than one
        thing. `blockc zoo ls` lists plans, and with `--all` every pack, tensor and blob.
        """,
    "BC908": """
        Another process holds the zoo's lock, or the file system has no locks. Collecting needs
        the lock, because what a writer has just found in the zoo must not be removed under it. A
        process that died holds no lock.
        """,
    "BC999": """
        A bug in blockc. Please report it; `blockc --traceback ...` shows where it happened.
        """,
}


def explanation(code: str) -> str:
    """Return the page of a code, such as ``BC401``."""
    return textwrap.dedent(_PAGES[code]).strip()


def explained() -> frozenset[str]:
    """Return the codes that have a page."""
    return frozenset(_PAGES)
