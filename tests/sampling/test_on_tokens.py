"""What submit tells of a row while it goes on."""

import asyncio
import dataclasses

from emjax.sampling import Engine

from .conftest import NO_EOS, SHAPE, mixed


def test_what_is_told_is_the_beginning_of_the_result(lm):
    engine = Engine(lm.replace(eos_ids=NO_EOS), **SHAPE)
    requests = mixed(20, seed=4, longest=32, top_logprobs=2)
    requests = [
        dataclasses.replace(r, sampling=dataclasses.replace(r.sampling, max_new=30, stop=("w9 w", "w1 w2")[: i % 3]))
        for i, r in enumerate(requests)
    ]

    async def serve(request, told):
        return await engine.submit(request, on_tokens=lambda *news: told.append(news))

    async def everyone(told):
        return await asyncio.gather(*(serve(r, told[r.id]) for r in requests))

    told = {r.id: [] for r in requests}
    results = asyncio.run(everyone(told))
    assert results == [next(engine.generate([r])) for r in requests]
    for result in results:
        for part, whole in enumerate((result.tokens, result.logprobs, result.top_logprobs)):
            before = [x for news in told[result.id] for x in news[part]]
            assert before == list(whole[: len(before)])
        assert len(before) < len(result.tokens)  # the end comes with the result
    assert sum(len(news) for news in told.values()) > 20
