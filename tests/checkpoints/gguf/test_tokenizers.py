"""Tokenizers in GGUF: found by their structure, token by token; what has no form there is refused by name."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fewbit.checkpoints.gguf.pre_tokenizers import WORDS, pre_tokenizer
from fewbit.checkpoints.gguf.sentencepiece_model import parse_model
from fewbit.checkpoints.gguf.tokenizer import tokenizer_values
from fewbit.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


@pytest.mark.parametrize("word", WORDS)
def test_a_split_is_found_by_its_structure(tokenizer, word):
    assert pre_tokenizer(json.loads(tokenizer(word).to_str())) == word


def test_a_byte_level_bpe_is_told_token_by_token(tokenizer, files_of):
    own = tokenizer("smollm", rows=300)
    own.add_tokens(["plainly added"])
    vocabulary = own.get_vocab_size()
    values = tokenizer_values(files_of(own), {"vocab_size": vocabulary + 2, "eos_token_id": 1})
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.pre"] == "smollm"
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert tokens[:vocabulary] == [own.id_to_token(number) for number in range(vocabulary)]
    assert tokens[vocabulary:] == [f"[PAD{vocabulary}]", f"[PAD{vocabulary + 1}]"]
    assert kinds == [CONTROL] * 2 + [NORMAL] * (vocabulary - 3) + [USER] + [UNUSED] * 2
    stored = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    assert stored == [tuple(merge) for merge in json.loads(own.to_str())["model"]["merges"]]
    assert (values["tokenizer.ggml.bos_token_id"], values["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert values["tokenizer.chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("word", "settings", "added"), [("llama-bpe", {}, True), ("llama-bpe", {"add_bos_token": False}, False)]
)
def test_whether_a_first_token_is_added_follows_the_files(tokenizer, files_of, word, settings, added):
    values = tokenizer_values(files_of(tokenizer(word), **settings), {"vocab_size": 400})
    assert values["tokenizer.ggml.add_bos_token"] is added


def test_an_unknown_split_is_named_and_may_be_given_a_word(tokenizer, files_of):
    own = tokenizer("gpt-2")
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[0-9]{7}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    files, configuration = files_of(own), {"vocab_size": 400}
    with pytest.raises(CheckpointError, match=r"splits text by \[0-9\]\{7\} then ByteLevel .* to='gguf:WORD'"):
        tokenizer_values(files, configuration)
    assert tokenizer_values(files, configuration, "falcon")["tokenizer.ggml.pre"] == "falcon"


def test_a_normalizer_that_llama_cpp_does_not_know_is_refused(tokenizer, files_of):
    own = tokenizer("gpt-2")
    own.normalizer = normalizers.Lowercase()
    with pytest.raises(CheckpointError, match="normalizer Lowercase"):
        tokenizer_values(files_of(own), {"vocab_size": 400})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": b"{"}, "tokenizer.json is not valid JSON"),
        ({"tokenizer.json": b"[1]"}, "tokenizer.json does not hold a JSON object but a list"),
        ({"tokenizer.json": b'{"model": 1, "model": 2}'}, "tokenizer.json names 'model' twice"),
        ({"tokenizer.json": b'{"model": {"type": "WordPiece", "vocab": {}}}'}, "a tokenizer of type 'WordPiece'"),
        ({"tokenizer.json": b'{"model": 3}'}, "is no tokenizer"),
        ({"tokenizer.model": b"no protobuf at all"}, "tokenizer.model is no file of SentencePiece"),
        ({"tokenizer.model": b""}, "tokenizer.model holds no pieces"),
        ({"tokenizer.model": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"}, "reaches beyond the end"),
    ],
)
def test_damaged_files_are_named(files, message):
    with pytest.raises(CheckpointError, match=message):
        tokenizer_values(files, {"vocab_size": 8})


def test_tokens_beyond_the_embedding_are_refused(tokenizer, files_of):
    with pytest.raises(CheckpointError, match="and the embedding has 300 rows"):
        tokenizer_values(files_of(tokenizer("gpt-2", rows=400)), {"vocab_size": 300})


def test_a_model_without_a_tokenizer_says_so():
    assert tokenizer_values({}, {"vocab_size": 8}) == {"tokenizer.ggml.model": "no_vocab"}


def test_pieces_are_those_that_sentencepiece_reads(sentencepiece_model):
    content = sentencepiece_model()
    spm = pytest.importorskip("sentencepiece")
    theirs = spm.SentencePieceProcessor(model_proto=content)
    ours = parse_model(content)
    assert [piece.text for piece in ours.pieces] == [theirs.id_to_piece(n) for n in range(theirs.vocab_size())]
    assert [piece.score for piece in ours.pieces] == [theirs.get_score(n) for n in range(theirs.vocab_size())]
    assert [piece.kind == BYTE for piece in ours.pieces] == [theirs.is_byte(n) for n in range(theirs.vocab_size())]
    assert [piece.kind == CONTROL for piece in ours.pieces] == [
        theirs.is_control(n) for n in range(theirs.vocab_size())
    ]
    values = tokenizer_values({"tokenizer.model": content}, {"vocab_size": 300})
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    assert values["tokenizer.ggml.token_type"][:3] == [UNKNOWN, CONTROL, CONTROL]
    assert values["tokenizer.ggml.tokens"][theirs.vocab_size()] == f"[PAD{theirs.vocab_size()}]"


def test_a_model_that_does_not_merge_is_refused(sentencepiece_model):
    with pytest.raises(CheckpointError, match=r"model_type 1, not BPE \(2\)"):
        tokenizer_values(
            {"tokenizer.model": sentencepiece_model(model_type="unigram", vocab_size=280)}, {"vocab_size": 300}
        )


def test_a_tokenizer_json_made_of_sentencepiece_gives_merges_the_order_of_scores():
    own = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    own.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    own.train_from_iterator(["low lower lowest newest widest"] * 9, trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, show_progress=False))  # fmt: skip
    content = json.loads(own.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    values = tokenizer_values({"tokenizer.json": json.dumps(content).encode()}, {"vocab_size": 300})
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    assert values["tokenizer.ggml.token_type"][:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    scores = dict(zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"], strict=True))
    made = ["".join(merge) for merge in content["model"]["merges"]]
    assert [scores[text] for text in made] == sorted((scores[text] for text in made), reverse=True)
