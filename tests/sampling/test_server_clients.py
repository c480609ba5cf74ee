"""Real clients grade the served micro model: lm-evaluation-harness, openai, inspect_ai."""

import asyncio
import json
import math
import textwrap

import inspect_ai
import openai
import pytest
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate

from emjax.eval.harness import EngineLM
from emjax.sampling import Request, Sampling
from emjax.worlds.micro.world import World

from .served import CHECKPOINT, LENGTH, NAME, load, running

WORLD = World(0)
ENTITIES = ["avaria", "belmora", "fenria", "umbrel", "tarsis", "velkan"]
VALUES = list(WORLD.domain["avaria"].values)
SUMS = [(3, 4), (9, 2), (5, 5), (1, 8)]


@pytest.fixture(scope="module")
def server():
    engine, lm, names = load()
    with running(engine, lm, names) as served:
        yield served


# --- lm-evaluation-harness --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Tasks over local files: facts by log-likelihood, sums in gsm8k's form by generation, and facts after a prefix."""
    where = tmp_path_factory.mktemp("tasks")

    def task(name, docs, config):
        (where / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        head = f"""
            task: {name}
            dataset_path: json
            dataset_kwargs: {{data_files: {{test: {where / name}.jsonl}}}}
            test_split: test
        """
        (where / f"{name}.yaml").write_text(textwrap.dedent(head) + textwrap.dedent(config))

    facts = [{"entity": e, "gold": VALUES.index(WORLD.fact[e])} for e in ENTITIES]
    assert any(doc["gold"] for doc in facts)  # a harness that reads the wrong entry would favour the first option
    choices = f"doc_to_choice: {json.dumps(VALUES)}\ndoc_to_target: gold\n"
    task(
        "facts",
        facts,
        'output_type: multiple_choice\ndoc_to_text: "<bos> <user> what is the capital of {{entity}} ? <asst> the capital of '
        '{{entity}} is"\n' + choices + "metric_list: [{metric: acc}]\n",
    )
    sums = [
        {"question": f"what is {x} plus {y} ?", "answer": f"{x} and {y} make <<{x}+{y}={x + y}>> #### {x + y}"} for x, y in SUMS
    ]
    ask = """
        output_type: generate_until
        doc_to_target: "{{answer.split('####')[-1].strip()}}"
        metric_list: [{metric: exact_match}]
        filter_list:
          - name: number
            filter: [{function: regex, regex_pattern: "([0-9]+)", group_select: -1}, {function: take_first}]
        generation_kwargs: {until: ["<end>", "?"], do_sample: false, max_gen_toks: 12}
    """
    task("sums", sums, ask + '    doc_to_text: "<bos> <user> {{question}} <asst>"\n')
    task("chat_sums", sums, ask + '    doc_to_text: "{{question}}"\n')
    prefixed = """
        output_type: generate_until
        doc_to_text: "what is the capital of {{entity}} ?"
        doc_to_target: "{{value}}"
        gen_prefix: "the capital of {{entity}} is"
        metric_list: [{metric: exact_match}]
        generation_kwargs: {until: ["."], max_gen_toks: 1}
    """
    task("prefixed", [{"entity": e, "value": WORLD.fact[e]} for e in ENTITIES], prefixed)
    return str(where)


def lm_eval(server, tasks, model, name, path, **settings):
    import lm_eval
    from lm_eval.tasks import TaskManager

    arguments = {"model": NAME, "base_url": server.url + path, "max_length": LENGTH, "num_concurrent": 4, "max_retries": 1}
    return lm_eval.simple_evaluate(
        model,
        model_args=arguments | settings.pop("model_args", {}),
        tasks=[name],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        bootstrap_iters=0,
        **settings,
    )


BACKENDS = {
    "token ids": {"tokenizer": CHECKPOINT, "tokenizer_backend": "huggingface", "batch_size": 5},
    "remote tokenizer": {"num_concurrent": 1, "batch_size": 4},  # found by itself, through /tokenizer_info
    "text": {"tokenizer": CHECKPOINT, "tokenizer_backend": "huggingface", "tokenized_requests": False},
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_loglikelihoods_are_the_engines(server, tasks, backend):
    results = lm_eval(server, tasks, "local-completions", "facts", "/v1/completions", model_args=BACKENDS[backend])
    samples = results["samples"]["facts"]
    assert len(samples) == len(ENTITIES)
    right = 0
    for sample in samples:
        prompt = server.ids(sample["arguments"][0][0])
        continuations = [server.ids(value) for value in VALUES]
        expected = server.engine.score(prompt, continuations)
        for (got, greedy), want, ids in zip(sample["filtered_resps"], expected, continuations, strict=True):
            assert abs(got - want) <= 1e-4
            best = next(server.engine.generate([Request("x", tuple(prompt), Sampling(temperature=0.0, max_new=1))]))
            assert greedy == (list(best.tokens) == ids)
        right += expected.index(max(expected)) == sample["doc"]["gold"]
    assert math.isclose(results["results"]["facts"]["acc,none"], right / len(ENTITIES))
    assert right >= 5  # the micro model knows its facts


def test_sums_in_the_form_of_gsm8k(server, tasks):
    results = lm_eval(
        server, tasks, "local-completions", "sums", "/v1/completions", model_args={"tokenizer": CHECKPOINT, "batch_size": 4}
    )
    assert results["results"]["sums"]["exact_match,number"] == 1.0  # it does sums, too
    for sample in results["samples"]["sums"]:
        prompt = tuple(server.ids(sample["arguments"][0][0]))
        sampling = Sampling(temperature=0.0, max_new=12, stop=("?",))
        assert sample["resps"][0][0] == next(server.engine.generate([Request("x", prompt, sampling)])).text


def test_the_same_numbers_in_process_and_through_the_server(server, tasks):
    import lm_eval as harness
    from lm_eval.tasks import TaskManager

    near = harness.simple_evaluate(
        EngineLM(server.engine, server.lm.tokenizer), tasks=["facts", "sums"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
    )  # fmt: skip
    settings = {"tokenizer": CHECKPOINT, "tokenizer_backend": "huggingface", "batch_size": 4}
    for name in ("facts", "sums"):
        far = lm_eval(server, tasks, "local-completions", name, "/v1/completions", model_args=settings)
        assert (
            near["results"][name].items()
            >= {key: value for key, value in far["results"][name].items() if isinstance(value, float)}.items()
        )
        for mine, theirs in zip(near["samples"][name], far["samples"][name], strict=True):
            assert mine["doc_id"] == theirs["doc_id"]
            if name == "sums":
                assert mine["resps"] == theirs["resps"]
            else:
                for (a, greedy), (b, said) in zip(mine["filtered_resps"], theirs["filtered_resps"], strict=True):
                    assert (pytest.approx(a, abs=1e-4), greedy) == (b, said)


def test_chat_completions_of_the_harness(server, tasks):
    settings = {"apply_chat_template": True}
    results = lm_eval(server, tasks, "local-chat-completions", "chat_sums", "/v1/chat/completions", **settings)
    assert results["results"]["chat_sums"]["exact_match,number"] == 1.0
    # A prefix of the answer comes as a trailing assistant message and is gone on with.
    results = lm_eval(server, tasks, "local-chat-completions", "prefixed", "/v1/chat/completions", **settings)
    assert results["results"]["prefixed"]["exact_match,none"] >= 5 / 6


# --- openai -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


MESSAGES = [{"role": "user", "content": "i feel sad . what do i do ?"}]


def test_openai_chat(server, client):
    settings = {"model": NAME, "messages": MESSAGES, "seed": 3, "n": 2, "temperature": 1.5, "logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(**settings)
    assert [choice.index for choice in answer.choices] == [0, 1]
    (prompt,) = [server.ids("<bos> <user> i feel sad . what do i do ? <asst>")]
    sampling = Sampling(temperature=1.5, seed=3, max_new=LENGTH - len(prompt), top_logprobs=2)
    expected = next(server.engine.generate([Request("x", tuple(prompt), sampling)]))
    assert answer.choices[0].message.content == expected.text
    assert [entry.logprob for entry in answer.choices[0].logprobs.content] == list(expected.logprobs)
    assert answer.usage.prompt_tokens == len(prompt)
    again = client.chat.completions.create(**settings)
    assert again.choices == answer.choices

    texts, reasons, logprobs = ["", ""], {}, [[], []]
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in answer.choices]
    assert logprobs == [choice.logprobs.content for choice in answer.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in answer.choices}
    assert chunk.usage == answer.usage

    stopped = client.chat.completions.create(**settings | {"n": 1}, stop=[expected.text[3:6]])
    assert stopped.choices[0].message.content == expected.text[: expected.text.find(expected.text[3:6])]
    assert stopped.choices[0].finish_reason == "stop"


def test_openai_stream_helper(client):
    """The client's own accumulator, which is strict about the shape of chunks."""
    with client.chat.completions.stream(model=NAME, messages=MESSAGES, seed=1, logprobs=True) as stream:
        final = stream.get_final_completion() if not [event for event in stream if event.type == "error"] else None
    whole = client.chat.completions.create(model=NAME, messages=MESSAGES, seed=1, logprobs=True)
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content


def test_openai_completions_and_errors(server, client):
    assert [model.id for model in client.models.list()] == [NAME, "tuned"]
    echoed = client.completions.create(model=NAME, prompt=[[1, 3], [1, 3, 20]], echo=True, logprobs=1, max_tokens=0)
    assert [choice.logprobs.tokens for choice in echoed.choices] == [["<bos>", "<user>"], ["<bos>", "<user>", "18"]]
    text = ""
    for chunk in client.completions.create(model=NAME, prompt="<bos> <user>", max_tokens=9, seed=4, stream=True):
        text += chunk.choices[0].text
    assert text == client.completions.create(model=NAME, prompt="<bos> <user>", max_tokens=9, seed=4).choices[0].text
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, presence_penalty=1)
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=10_000)


# --- inspect_ai -------------------------------------------------------------------------------------------


def test_inspect_ai(server, tmp_path):
    samples = [Sample(input=f"what is {x} plus {y} ?", target=str(x + y)) for x, y in SUMS]
    model = get_model("openai-api/emjax/" + NAME, base_url=server.url + "/v1", api_key="none")
    config = {"temperature": 0.0, "max_tokens": 12, "logprobs": True, "top_logprobs": 3, "seed": 1, "stop_seqs": ["?"]}
    task = inspect_ai.Task(dataset=samples, solver=generate(), scorer=match(numeric=True), config=GenerateConfig(**config))
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(tmp_path), display="none", max_retries=0)
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    for sample in log.samples:
        content = sample.output.choices[0].logprobs.content
        assert len(content) == sample.output.usage.output_tokens
        assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in content)  # greedy


def test_inspect_ai_streams_and_learns_what_does_not_fit(server):
    config = GenerateConfig(temperature=0.0, max_tokens=12)

    def ask(text, **more):
        model = get_model(f"openai-api/emjax/{NAME}", base_url=server.url + "/v1", api_key="none", memoize=False, **more)
        return asyncio.run(model.generate(text, config=config))

    streamed, whole = (ask("what is 3 plus 4 ?", stream=stream) for stream in (True, False))
    assert streamed.completion == whole.completion != ""
    assert streamed.usage == whole.usage
    assert ask("7 " * 300).stop_reason == "model_length"
