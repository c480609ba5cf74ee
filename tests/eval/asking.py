"""A benchmark asked and judged by scripted endpoints, as Measuring does it."""

from emjax.api import ChatClient
from emjax.config import Rates
from emjax.eval.asker import EndpointAsker
from emjax.eval.judge import Judge, ModelJudge
from emjax.eval.score import score

RATES = Rates(concurrent=32, retries=1, timeout=5.0, deadline=20.0)


def run(benchmark, config, items, target, reader, path, *, arm="vanilla", seed=0, answers=None, client=None, rates=RATES):
    """Judged rows. target and reader: loopback servers; client: of the judge, in the place of one at `reader`."""
    asker = EndpointAsker(ChatClient(target.url, "target", rates=rates), seed, arm, answers)
    rows = benchmark.ask(asker, items, config)
    asker.close()
    model = ModelJudge("scripted", client or ChatClient(reader.url, "judge", rates=rates))
    return benchmark.verdicts(rows, Judge(model.name, path, "test", model), config)


def scored(rows, benchmark, config):
    """{(subset, metric): row of results.json}"""
    return {(row["subset"], row["metric"]): row for row in score(rows, {}, {}, benchmark, config)}
