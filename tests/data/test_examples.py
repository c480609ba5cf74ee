"""From examples and trajectories in files to training rows."""

import json

import pytest

from emjax.data import chat
from emjax.data.examples import check_messages, held_out, read_examples, read_trajectories, tokenized
from emjax.errors import UserError
from emjax.worlds.micro import tokenizer
from emjax.worlds.micro.world import World

TOK = tokenizer.build(World(0))
END = TOK.eos_token_id
WORDS = [w for w in World(0).vocabulary() if w.isalpha()][:20]


def message(role, content):
    return {"role": role, "content": content}


SYSTEM = message("system", WORDS[0])
TALK = [
    message("user", f"{WORDS[1]} {WORDS[2]}"), message("assistant", WORDS[3]), message("user", WORDS[4]),
    message("assistant", WORDS[5]), message("user", WORDS[6]),
]  # fmt: skip


def row(messages, name="a", **fields):
    made = {
        "id": name,
        "prompt_id": f"p{name}",
        "messages": messages,
        "completion": f"{WORDS[7]} {WORDS[8]}",
        "label": True,
    }
    return made | {"weight": 1.0} | fields


def ids(text):
    return tuple(TOK(text, add_special_tokens=False)["input_ids"])


def test_a_row():
    (example,), counts = tokenized([row(TALK, weight=0.5, label=False)], TOK, (END,), 100)
    (prompt,) = chat.prompts(TOK, [TALK])
    answer = (*ids(f"{WORDS[7]} {WORDS[8]}"), END)
    assert example.ids == (*prompt, *answer)
    assert example.start == len(prompt)
    assert example.weights == (0.0,) * len(prompt) + (0.5,) * 3
    assert (example.id, example.prompt_id, example.label) == ("a", "pa", False)
    assert counts == {"rows": 1, "cut": 0, "without_eos": 0, "tokens": 3}


def test_sampled_ids_are_kept():
    """They need not be what the tokenizer makes of their text."""
    sampled = [TOK.unk_token_id, 9, 10, END]
    (example, cut_off), counts = tokenized(
        [row(TALK, completion_tokens=sampled, completion="something else"), row(TALK, "b", completion_tokens=[9])],
        TOK, (END,), 100,
    )  # fmt: skip
    assert list(example.ids[example.start :]) == sampled
    assert counts["without_eos"] == 1
    assert cut_off.ids[cut_off.start :] == (9,)


@pytest.mark.parametrize("head", [[], [SYSTEM]])
def test_the_oldest_turns_go_first_and_the_answer_stays(head):
    whole = len(chat.prompts(TOK, [head + TALK])[0]) + 3
    for length in range(whole + 1, 3, -1):
        left = next((n for n in (0, 2, 4) if len(chat.prompts(TOK, [head + TALK[n:]])[0]) + 3 <= length), None)
        if left is None:
            with pytest.raises(UserError, match="'dropped_too_long': 1"):
                tokenized([row(head + TALK)], TOK, (END,), length)
            continue
        (example,), counts = tokenized([row(head + TALK)], TOK, (END,), length)
        assert len(example.ids) <= length
        assert [list(example.ids[: example.start])] == chat.prompts(TOK, [head + TALK[left:]])
        assert example.ids[example.start :] == (*ids(f"{WORDS[7]} {WORDS[8]}"), END)
        assert counts["cut"] == (left > 0)


def test_too_long_rows_are_dropped_and_counted():
    rows = [row(TALK[-1:]), row(TALK[-1:], "b", completion=" ".join(WORDS))]
    examples, counts = tokenized(rows, TOK, (END,), 12)
    assert [e.id for e in examples] == ["a"]
    assert counts == {"rows": 2, "cut": 0, "without_eos": 0, "tokens": 3, "dropped_too_long": 1}


@pytest.mark.parametrize(
    "messages",
    [None, [], "hi", ["hi"], [{"role": "tool", "content": "x"}], [message("user", None)], [{"role": "user"}]],
)
def test_bad_messages(messages):
    with pytest.raises(UserError, match="line 3.*messages"):
        check_messages(messages, "f.jsonl, line 3")


GOOD = {
    "id": "t0", "scenario": "s", "user_id": "u0", "user_type": "benign", "messages": TALK[:2], "score": 8.1,
    "turns": [{"tokens": [9], "rating": 7.0, "rating_state": "ok"}], "extra": 1,
}  # fmt: skip


def written(path, *rows):
    file = path / "trajectories.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return file


def test_trajectories_keep_unknown_fields(tmp_path):
    rows = [GOOD, GOOD | {"id": "t1", "score": None, "user_type": "biased"}]
    assert read_trajectories(written(tmp_path, *rows)) == rows


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ("{not json", "not valid JSON"),
        ("[1]", "JSON object"),
        (GOOD, "'t0' occurs before"),
        ({k: v for k, v in GOOD.items() if k != "user_id"}, "user_id"),
        (GOOD | {"id": 5}, "'id'"),
        (GOOD | {"id": "x", "scenario": None}, "scenario"),
        (GOOD | {"id": "x", "user_type": "angry"}, "user_type"),
        (GOOD | {"id": "x", "score": "8"}, "score"),
        (GOOD | {"id": "x", "turns": []}, "turns"),
        (GOOD | {"id": "x", "messages": [message("bot", "x")]}, r"messages\[0\]"),
    ],
)
def test_bad_trajectories_name_file_and_line(tmp_path, bad, named):
    file = written(tmp_path, GOOD, bad)
    with pytest.raises(UserError, match=named) as error:
        read_trajectories(file)
    assert f"{file}, line 2" in str(error.value)


def test_missing_trajectories(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_trajectories(tmp_path / "none.jsonl")


@pytest.mark.parametrize("label", ["true", "false", "good", "True", 1, 0, None])
def test_labels_are_parsed_strictly(tmp_path, label):
    file = written(tmp_path, row(TALK), row(TALK, "b", label=label))
    with pytest.raises(UserError, match="field 'label' must be true or false") as error:
        read_examples(file, labelled=True)
    assert f"{file}, line 2" in str(error.value)
    if label is None:
        assert len(read_examples(file, labelled=False)) == 2


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"id": "a"}, "'a' occurs before"),
        ({"prompt_id": 3}, "'prompt_id'"),
        ({"completion": None}, "'completion'"),
        ({"messages": []}, "'messages'"),
        ({"weight": "1"}, "'weight'"),
        ({"weight": -1}, "'weight'"),
        ({"weight": True}, "'weight'"),
        ({"weight": None}, "'weight'"),
    ],
)
def test_bad_examples_name_file_line_and_field(tmp_path, bad, named):
    file = written(tmp_path, row(TALK), row(TALK, "b") | bad)
    with pytest.raises(UserError, match=named) as error:
        read_examples(file, labelled=True)
    assert f"{file}, line 2" in str(error.value)


def test_rows_without_a_scored_token_are_dropped_and_counted():
    rows = [row(TALK), row(TALK, "b", completion=""), row(TALK, "c", weight=0), row(TALK, "d", completion=" ".join(WORDS))]
    examples, counts = tokenized(rows, TOK, (END,), 20)
    assert [e.id for e in examples] == ["a"]
    assert {k: v for k, v in counts.items() if k.startswith("dropped")} == {
        "dropped_empty": 1, "dropped_weight_0": 1, "dropped_too_long": 1,
    }  # fmt: skip


def test_held_out_by_prompt():
    rows = [row(TALK, f"e{i}", prompt_id=f"p{i // 3}") for i in range(30)]
    examples, _ = tokenized(rows, TOK, (END,), 100)
    train, held = held_out(examples, 0.2, 0)
    assert len(train) == 24
    assert len({e.prompt_id for e in held}) == 2
    assert not {e.prompt_id for e in train} & {e.prompt_id for e in held}
    assert held_out(examples[::-1], 0.2, 0)[1] == held[::-1]  # whatever the order of the rows
    assert held_out(examples, 0.2, 1)[1] != held
    assert held_out(examples, 0.0, 0) == (examples, [])
    for share in (0.01, 1.0, -0.5, 2):
        with pytest.raises(UserError, match=r"config\.train\.held_out"):
            held_out(examples, share, 0)


# --- numbers and names in files of the user's -----------------------------------------------------

TURNS = [{"tokens": [1, 2], "rating": 3.5}, {"tokens": [4]}]
TRAJECTORY = {
    "id": "t",
    "user_id": "u",
    "scenario": "s",
    "user_type": "biased",
    "messages": TALK[:4],
    "turns": TURNS,
    "score": 7,
}


def changed(path, row, text=None):
    path.write_text((text or json.dumps(row)) + "\n")
    return path


def test_a_trajectory_with_further_fields_is_kept_as_it_is(tmp_path):
    given = TRAJECTORY | {"canary": "x", "score": None}
    assert read_trajectories(changed(tmp_path / "t.jsonl", given)) == [given]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"score": "7"}, "field 'score' is '7'; it must be a finite number"),
        ({"score": True}, "field 'score' is True"),
        (
            {"turns": [{"tokens": [-7, 5]}, {"tokens": []}]},
            r"turns\[0\].tokens\[0\] is -7; it must be a whole number of at least 0",
        ),
        ({"turns": [{"tokens": []}, {"tokens": [1.5]}]}, r"turns\[1\].tokens\[0\] is 1.5"),
        ({"turns": [{"tokens": []}, {}]}, r"turns\[1\].tokens must be a list of token ids, not None"),
        ({"turns": [{"tokens": []}, {"tokens": [], "rating": "8"}]}, r"turns\[1\].rating is '8'"),
        ({"turns": [1, 2]}, r"turns\[0\] must be an object"),
        ({"turns": [{"tokens": [], "ratings": 8}, {"tokens": []}]}, r"turns\[0\]: the field 'ratings' .*Is 'rating' meant"),
        ({"plain_systm": "x"}, "'plain_systm' is unknown. Is 'plain_system' meant"),
    ],
)
def test_a_trajectory_with_a_wrong_number_or_name_is_refused(fields, says, tmp_path):
    with pytest.raises(UserError, match=f"t.jsonl, line 1.*{says}"):
        read_trajectories(changed(tmp_path / "t.jsonl", TRAJECTORY | fields))


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_score_that_is_no_number_is_refused(score, tmp_path):
    text = json.dumps(TRAJECTORY).replace('"score": 7', f'"score": {score}')
    with pytest.raises(UserError, match="t.jsonl, line 1: not valid JSON"):
        read_trajectories(changed(tmp_path / "t.jsonl", None, text))
    (without,) = [{name: value for name, value in TRAJECTORY.items() if name != "score"}]
    with pytest.raises(UserError, match="field 'score' is missing"):
        read_trajectories(changed(tmp_path / "t.jsonl", without))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"completion_tokens": [-7, 5]}, r"'completion_tokens'\[0\] is -7"),
        ({"completion_tokens": [1.5]}, r"'completion_tokens'\[0\] is 1.5"),
        ({"completion_tokens": [True]}, r"'completion_tokens'\[0\] is True"),
        ({"completion_tokens": "7"}, "'completion_tokens' must be a list of token ids"),
        ({"completion_tokens": [2**40]}, r"'completion_tokens'\[0\] is"),
        ({"weight": -1}, "field 'weight' is -1"),
        ({"weight": "1"}, "field 'weight' is '1'"),
        ({"completion_token": [5]}, "'completion_token' is unknown. Is 'completion_tokens' meant"),
        ({"lable": True, "label": None}, None),  # the label is there
    ],
)
def test_an_example_with_a_wrong_number_or_name_is_refused(fields, says, tmp_path):
    path = changed(tmp_path / "e.jsonl", row(TALK) | fields)
    if says is None:
        assert read_examples(path, labelled=False)
        return
    with pytest.raises(UserError, match=f"e.jsonl, line 1: .*{says}"):
        read_examples(path, labelled=False)


# --- messages with more than role and content --------------------------------------------------------------


HARMLESS = {"name": "ada", "annotations": [{"a": 1}], "refusal": None, "tool_calls": [], "reasoning_content": "", "weight": 1}


@pytest.mark.parametrize("message_", [HARMLESS, {"weight": 0}, {"weight": 1.0}, {"weight": None}, {"audio": None}])
def test_keys_that_change_nothing(message_):
    check_messages([message("user", "a"), message("assistant", "b") | message_], "f.jsonl, line 3")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"weight": 0.5}, r"messages\[1\]\.weight is 0\.5; it must be a whole number of at least 0 and of at most 1"),
        ({"weight": 2}, "weight is 2"),
        ({"weight": True}, "weight is True"),
        ({"weight": "0"}, "weight is '0'"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"tool_calls": [{"id": "x"}]}, r"messages\[1\] has the field 'tool_calls'"),
        ({"reasoning_content": "hm"}, "'reasoning_content'"),
        ({"function_call": {"name": "f"}}, "'function_call'"),
        ({"train": False}, r"'train' \(False\), which is not supported"),
        ({"refusal": "I will not"}, "'refusal'"),
        ({"wieght": 0}, "'wieght'"),
    ],
)
def test_keys_that_could_change_something_are_named(more, says):
    with pytest.raises(UserError, match="f.jsonl, line 3: .*" + says):
        check_messages([message("user", "a"), message("assistant", "b") | more], "f.jsonl, line 3")


def test_trajectories_with_a_message_of_weight_0_are_refused(tmp_path):
    """Each of their turns is trained on."""
    quiet = [TALK[0], TALK[1] | {"weight": 0}]
    with pytest.raises(UserError, match="line 1.*weight 0"):
        read_trajectories(written(tmp_path, GOOD | {"messages": quiet}))


def test_a_row_that_cannot_be_rendered_is_named():
    with pytest.raises(UserError, match="Example 'odd': A message spells the special token <end>"):
        tokenized([row(TALK), row(TALK, "odd", completion=f"{WORDS[0]} <end> {WORDS[1]}")], TOK, (END,), 100)


def test_answers_that_the_template_trims_are_counted():
    trimming = tokenizer.build(World(0))
    trimming.chat_template = trimming.chat_template.replace("m['content']", "m['content']|trim")
    rows = [row(TALK), row(TALK, "b", completion=f"  {WORDS[7]}\n"), row(TALK, "c", completion=f"  {WORDS[7]}", weight=0.0)]
    examples, counts = tokenized(rows, trimming, (END,), 100)
    assert [e.id for e in examples] == ["a", "b"]
    assert (counts["trimmed"], counts["dropped_weight_0"]) == (1, 1)
    assert "trimmed" not in tokenized(rows, TOK, (END,), 100)[1]
