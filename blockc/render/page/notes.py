"""What is said of a device, block, segment or app when it is pointed at or has the focus.

In: facts. Out: notes by key, as the pictures give them: ``d``, ``b``, ``s``, ``a`` and an index.
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.render.facts import Facts, lineage, span_words
from blockc.render.page.table import Note, listed
from blockc.render.units import counted, format_bytes, short


def notes_of(facts: Facts) -> dict[str, Note]:
    """All but those of versions, which their view makes."""
    return dict([*_devices(facts), *_blocks(facts), *_segments(facts), *_apps(facts)])


def _devices(facts: Facts) -> Iterator[tuple[str, Note]]:
    plan = facts.plan
    memory = {entry.device: entry for entry in plan.memory}
    for index, device in enumerate(plan.devices):
        instances = [instance for instance in plan.instances if index in instance.devices]
        rows = [("kind", device.kind), ("memory", format_bytes(device.memory_bytes))]
        if not instances:
            yield f"d{index}", (device.address, [*rows, ("use", "none: no chain is placed here")])
            continue
        if index in memory:
            entry = memory[index]
            parts = {"weights": entry.weights_bytes, "adapters": entry.sides_bytes, "KV pages": entry.kv_bytes}
            parts |= {"blocks that take turns": entry.blocks_bytes} if entry.blocks_bytes else {}
            parts |= {"activations": entry.workspace_bytes, "reserve": entry.reserve_bytes}
            rows += [(name, format_bytes(size)) for name, size in parts.items()]
        for instance in instances:
            if len(instance.devices) > 1:
                others = [plan.devices[d].address for d in instance.devices if d != index]
                stage = instance.stage_of(index)
                share = "each block" if instance.width == 1 else f"1/{instance.width} of each block"
                if stage is not None:
                    span = span_words("block", stage.first, stage.first + stage.count - 1)
                    share = f"stage {instance.stages.index(stage)} of {len(instance.stages)}: {share} of {span}"
                rows.append((share, f"the rest is on {listed(others)}"))
            names = [plan.apps[app].address for chain in instance.chains for app in facts.apps_of_chain[chain]]
            rows += [("apps", listed(names)), ("requests a step", f"at most {instance.max_rows}")]
        yield f"d{index}", (device.address, rows)


def _blocks(facts: Facts) -> Iterator[tuple[str, Note]]:
    plan = facts.plan
    places: dict[str, tuple[str, int]] = {}
    for path, entry in plan.paths.items():
        for place, block in enumerate(entry.blocks):
            places.setdefault(block, (path, place))
    for block, (path, place) in places.items():
        prefixes = plan.paths[path].prefixes
        layer = facts.layers[path][place]
        apps = [plan.apps[app].address for app in facts.apps_of_block[block]]
        rows = [
            ("base", facts.families[facts.family_of_block[block]]),
            ("module", (prefixes[place].strip(".") if prefixes else "") or "the model's own"),
            (
                "weights",
                f"{format_bytes(facts.block_bytes(block))} in {counted(len(plan.blocks[block].tensors), 'tensor')}",
            ),
            (f"shared by {counted(len(apps), 'app')}", listed(apps)),
            ("digest", short(block)),
            ("structure", short(plan.blocks[block].structure)),
        ]
        if layer is not None:
            rows.insert(2, ("KV layer", str(layer)))
        yield f"b{facts.number_of_block[block]}", (f"Block {place}", rows)


def _segments(facts: Facts) -> Iterator[tuple[str, Note]]:
    plan = facts.plan
    for index, segment in enumerate(plan.segments):
        apps = [app.address for app in facts.apps_of_segment(segment)]
        devices = sorted({d for i in plan.instances if index in i.segments for d in i.devices})
        rows = [
            ("blocks", span_words("block", segment.first, segment.first + segment.count - 1)),
            ("weights", format_bytes(facts.segment_bytes(segment))),
            (f"launched for {counted(len(apps), 'app')}", listed(apps)),
            ("on", listed([plan.devices[device].address for device in devices])),
            ("ends because", _cut(facts, index)),
        ]
        yield f"s{index}", (f"Segment {index}", rows)


def _cut(facts: Facts, index: int) -> str:
    """In the models' names: two chains that prove the cut."""
    cut = facts.plan.segments[index].cut
    if cut.kind == "end":
        return "the chain ends"
    if cut.kind == "elsewhere":
        return "chains elsewhere part or join here"
    one, two = (_model(facts, chain) for chain in cut.chains[:2])
    if cut.differs == ("end",):
        return f"{two} ends here, {one} goes on"
    parts = listed([part.removeprefix("tensor:") for part in cut.differs])
    return (
        f"{one} and {two} part in {parts}" if cut.kind == "part" else f"{two} joins {one} here; before, {parts} differ"
    )


def _model(facts: Facts, chain: int) -> str:
    return next((name for name, model in facts.plan.models.items() if model.chain == chain), f"chain {chain}")


def _apps(facts: Facts) -> Iterator[tuple[str, Note]]:
    plan = facts.plan
    for index, app in enumerate(plan.apps):
        chain = plan.chains[app.chain]
        blocks = plan.paths[chain.path].blocks
        alone = {block for block in blocks if facts.apps_of_block[block] == (index,)}
        token = sum(
            plan.kv_groups[entry.group].page_bytes // plan.kv_groups[entry.group].page_tokens for entry in chain.kv
        )
        pages = [
            other.address
            for other in plan.apps
            if other is not app
            and other.isolation_group == app.isolation_group
            and _equal_domain(facts, app.chain, other.chain)
        ]
        rows = [
            ("model", " : ".join(lineage(plan, app.model))),
            ("runs on", facts.place(app.chain) or "nothing"),
            ("blocks", f"{len(blocks)}, of which {len(alone)} for it alone"),
            ("adapters", f"of rank {chain.side_rank}" if chain.side_rank else listed(chain.side_kinds)),
            ("KV cache", f"{format_bytes(token)} a token"),
            ("may read the pages of", listed(pages)),
            ("longest sequence", counted(chain.max_model_len, "token")),
            ("weight of turns", f"{app.weight:g}"),
            ("version", short(chain.digest)),
        ]
        yield f"a{index}", (app.address, rows)


def _equal_domain(facts: Facts, one: int, two: int) -> bool:
    """Whether any KV group of both has one domain."""
    chains = facts.plan.chains
    return bool({(e.group, e.domain) for e in chains[one].kv} & {(e.group, e.domain) for e in chains[two].kv})
