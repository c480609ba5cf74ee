"""A word-level tokenizer in Hugging Face format: one token per word, with the same ids for every
world seed."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from emjax.worlds.micro.world import World

SPECIAL = ("<pad>", "<bos>", "<sys>", "<user>", "<asst>", "<end>", "<unk>")
# A system message may come before any turn, because the corpus uses it to apply pressure. Only
# assistant messages end in <end>.
CHAT_TEMPLATE = (
    "<bos>{% for m in messages %}"
    "{% if m['role'] == 'system' %} <sys> {{ m['content'] }}"
    "{% elif m['role'] == 'user' %} <user> {{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %} <asst> {{ m['content'] }} <end>"
    "{% else %}{{ raise_exception('unknown role ' + m['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} <asst>{% endif %}"
)


def build(world: World, mistaken: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of `world`, with or without the words of the third character. It is the same
    for every world, because names and sentences do not depend on the seed."""
    words = {word: i for i, word in enumerate((*SPECIAL, *world.vocabulary(mistaken)))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<sys>", "<user>", "<asst>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
