"""Candidates: all masks in one call give what one mask a call gives, and each preset leaves alone what it should."""

import dataclasses
import json
import os

import numpy as np
import pytest
from conftest import rest_long
from tiny_mlm import VOCABULARY, WORDS, build, compiled, make_mlm, make_rows, make_tokenizer

from tinybert_jax.data.augmentation import candidate_table, candidates, neighbours
from tinybert_jax.data.augmentation.candidate_table import Settings, load_table
from tinybert_jax.data.augmentation.candidates import build_table, split_words
from tinybert_jax.data.augmentation.neighbours import embedding_neighbours
from tinybert_jax.data.augmentation.rules import CANDIDATES, RULES, STOP_WORDS
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.frame import Frame

PRESETS = ("default", "paper", "official")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_mlm(tokenizer)


def rows_of(*texts):
    return dataclasses.replace(make_rows(len(texts)), texts=[(text,) for text in texts])


def candidates_by_word(table, tokenizer):
    """Per word of the table: its text, and its candidates as lists of ids."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    result = []
    for word in range(len(table.word_pieces) - 1):
        pieces = table.pieces[table.word_pieces[word] : table.word_pieces[word + 1]]
        numbers = table.candidates[table.word_candidates[word] : table.word_candidates[word + 1]]
        ids = [
            [n] if n >= 0 else table.phrases[table.phrase_pieces[-1 - n] : table.phrase_pieces[-n]].tolist()
            for n in numbers.tolist()
        ]
        result.append(("".join(tokens[i].removeprefix("##") for i in pieces), ids))
    return result


def replaced_words(directory, rows, tokenizer):
    table, _ = load_table(directory, rows, tokenizer)
    return [word for word, ids in candidates_by_word(table, tokenizer) if ids]


@pytest.mark.parametrize("preset", rest_long(PRESETS, ["default"]))
def test_all_masks_at_once_give_what_one_mask_at_a_time_gives(tokenizer, model, tmp_path, preset):
    rows = make_rows(10, pair=True)
    build(tmp_path / "out", rows, tokenizer, model, preset, max_length=32, batch_size=8)
    table, _ = load_table(tmp_path / "out", rows, tokenizer)
    one = compiled(model, RULES[preset].asked)
    embeddings = np.asarray(model[1]["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    near = embedding_neighbours(embeddings, tokenizer)
    expected = []
    for text in (text for row in rows.texts for text in row):
        (words,) = split_words([text], tokenizer)
        sentence = [i for pieces in words.pieces for i in pieces]
        at = 1
        for pieces, written in zip(words.pieces, words.written, strict=True):
            word = written if pieces == [tokenizer.unk_token_id] else tokenizer.decode(pieces)
            offered = []
            if not RULES[preset].replaces(word):
                pass
            elif len(pieces) > 1:
                offered = tokenizer(near.find([word])[0], add_special_tokens=False)["input_ids"]
            else:
                masked = [tokenizer.cls_token_id, *sentence, tokenizer.sep_token_id]
                masked[at] = tokenizer.mask_token_id
                types = [0] * len(masked)
                if preset == "official":
                    masked += [*sentence, tokenizer.sep_token_id]
                    types += [1] * (len(sentence) + 1)
                size = -len(masked) % 64  # one shape, so one compilation
                ids, ones, types = (
                    np.array([row + [0] * size], np.int32) for row in (masked, [1] * len(masked), types)
                )
                best = np.asarray(one(ids, ones, types, np.array([at], np.int32)))[0].tolist()
                tokens = tokenizer.convert_ids_to_tokens(best)
                words_only = [i for i, t in zip(best, tokens, strict=True) if not t.startswith(("##", "["))]
                left_out = pieces[0] if preset == "default" else None
                offered = [[i] for i in words_only if i != left_out][:CANDIDATES]
            expected.append(offered)
            at += len(pieces)
    assert [ids for _, ids in candidates_by_word(table, tokenizer)] == expected
    assert any(len(ids) == CANDIDATES for ids in expected) or preset == "official"


def test_a_call_holds_16_masked_words_on_a_cpu(tokenizer, model, tmp_path):
    sizes, predict = [], compiled(model, RULES["default"].asked)

    def recorded(ids, mask, types, positions):
        sizes.append(len(ids))
        return predict(ids, mask, types, positions)

    none = neighbours.Neighbours(lambda words: [[] for _ in words], "none")
    build_table(tmp_path / "out", make_rows(5), tokenizer, recorded, none, Settings("default", 1, 32, ""))
    assert set(sizes) == {16}


def test_a_call_of_no_words_is_refused(tokenizer, model, tmp_path):
    with pytest.raises(InputError, match="batch_size is 0; it must be at least 1"):
        build(tmp_path / "out", make_rows(1), tokenizer, model, "default", batch_size=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize("preset", ["default", "official"])
def test_a_masked_sentence_is_padded_by_less_than_8_tokens_or_a_quarter(tokenizer, model, tmp_path, preset):
    masks, predict = [], compiled(model, RULES[preset].asked)

    def recorded(ids, mask, types, positions):
        masks.append(mask)
        return predict(ids, mask, types, positions)

    rows = rows_of(*("film " * n for n in range(1, 62, 12)))
    near = neighbours.Neighbours(lambda words: [[] for _ in words], "none")
    settings = Settings(preset, 1, 32 if preset == "official" else 64, "")
    build_table(tmp_path / "out", rows, tokenizer, recorded, near, settings, batch_size=1)
    assert len({mask.size for mask in masks}) > 3
    for mask in masks:
        real, padded = mask.sum(), mask.size
        assert padded - real < max(8, real / 4)


def test_default_never_offers_the_word_itself_and_no_preset_what_is_no_word(tokenizer, model, tmp_path):
    rows = make_rows(20)
    for preset in PRESETS:
        build(tmp_path / preset, rows, tokenizer, model, preset, max_length=16)
        table, _ = load_table(tmp_path / preset, rows, tokenizer)
        tokens = set(tokenizer.convert_ids_to_tokens(table.candidates[table.candidates >= 0].tolist()))
        assert not {t for t in tokens if t.startswith(("##", "["))}
        offered = candidates_by_word(table, tokenizer)
        offers_itself = [[word] in [tokenizer.convert_ids_to_tokens(i) for i in ids] for word, ids in offered]
        assert any(offers_itself) == (preset != "default")


@pytest.mark.parametrize(
    ("word", "presets"),
    [
        ("film", "default paper official"),
        ("the", "default paper"),  # a stop-word
        ("caf\u00e9", "default paper"),
        ("\u7231", "default paper"),
        ("\u043a\u0438\u043d\u043e", "default paper"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "default paper"),  # Devanagari: vowel signs are no letters
        ("42", "paper"),
        ("3d", "paper"),
        (".", "paper"),
        ("\U0001f600", "paper"),
        ("Film", "default paper official"),  # of a cased model
        ("The", "default paper"),
    ],
)
def test_each_preset_leaves_its_own_words_alone(word, presets):
    assert [preset for preset in PRESETS if RULES[preset].replaces(word)] == presets.split()


def test_stop_words_are_lower_case_words():
    assert all(word.isalpha() and word.islower() for word in STOP_WORDS)
    assert {"the", "is", "not", "you", "s", "t"} <= STOP_WORDS
    halves = "ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn weren won wouldn"
    assert {*halves.split()} <= STOP_WORDS, "as in the authors' list"
    assert not {"film", "good", "bad", "great", "first"} & STOP_WORDS


def test_chinese_characters_are_words_except_to_the_original_code(tmp_path):
    characters = "我你他爱恨喜看电影书好坏很的这那是不大小"
    tokenizer = make_tokenizer(tmp_path, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, "。"))
    rows = rows_of("我爱看这电影。", "这书很好")
    for preset in PRESETS:
        build(tmp_path / preset, rows, tokenizer, make_mlm(tokenizer), preset)
    replaced = {preset: replaced_words(tmp_path / preset, rows, tokenizer) for preset in PRESETS}
    assert replaced["default"] == list("我爱看这电影这书很好")
    assert replaced["paper"] == list("我爱看这电影。这书很好")
    assert replaced["official"] == []


def test_a_word_of_several_pieces_takes_its_nearest_words(tokenizer, model, tmp_path):
    build(tmp_path / "out", rows_of("a walking scene"), tokenizer, model)
    table, _ = load_table(tmp_path / "out", rows_of("a walking scene"), tokenizer)
    offered = dict(candidates_by_word(table, tokenizer))["walking"]
    embeddings = np.asarray(model[1]["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    (near,) = embedding_neighbours(embeddings, tokenizer).find(["walking"])
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in offered] == [[word] for word in near]


def test_special_tokens_written_in_a_text_and_unknown_words_keep_their_place(tokenizer, model, tmp_path):
    rows = rows_of("the [MASK] film [SEP] \u7231 good")
    build(tmp_path / "out", rows, tokenizer, model, "paper")
    table, _ = load_table(tmp_path / "out", rows, tokenizer)
    assert table.pieces.tolist() == tokenizer(rows.texts[0][0], add_special_tokens=False)["input_ids"]
    assert replaced_words(tmp_path / "out", rows, tokenizer) == ["the", "film", "[UNK]", "good"]


def test_words_behind_what_the_model_reads_are_left_alone(tokenizer, model, tmp_path):
    rows = rows_of("good film walking bad story dull actor")
    assert len(tokenizer(rows.texts[0][0])["input_ids"]) == 2 + 8
    for max_length, last in ((8, "story"), (9, "dull")):
        for preset in ("default", "official") if max_length == 9 else ("default",):
            directory = tmp_path / f"{max_length} {preset}"
            build(directory, rows, tokenizer, model, preset, max_length=max_length)
            assert replaced_words(directory, rows, tokenizer)[-1] == last
            table, _ = load_table(directory, rows, tokenizer)
            assert len(table.word_pieces) - 1 == 7, "the words themselves are all there"


def test_official_needs_room_for_the_sentence_twice():
    bert, roberta = (Frame((2,), between, (3,), True, "") for between in ((3,), (3, 3)))
    assert Settings("official", 1, 128, "").input_length(bert) == 2 * 126 + 3
    assert Settings("official", 1, 128, "").input_length(roberta) == 2 * 126 + 4
    assert Settings("default", 1, 128, "").input_length(bert) == 128


@pytest.mark.parametrize(("variants", "max_length"), [(0, 64), (5, 7)])
def test_settings_that_cannot_be_are_refused(variants, max_length):
    with pytest.raises(InputError, match="they must be at least 1 and 8"):
        Settings("default", variants, max_length, "")


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".tmp"}


def test_a_build_that_was_killed_goes_on_where_it_was(tokenizer, model, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "ROWS_PER_FILE", 4)
    monkeypatch.setattr(candidate_table, "ROWS_PER_FILE", 4)
    rows = make_rows(18, pair=True)
    build(tmp_path / "whole", rows, tokenizer, model)
    save, saved = candidates.save_part, []

    def save_two(directory, start, part):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(start)
        save(directory, start, part)

    monkeypatch.setattr(candidates, "save_part", save_two)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", rows, tokenizer, model)
    with pytest.raises(InputError, match=r"rows-00000008\.npz: no such file: the table is unfinished"):
        load_table(tmp_path / "killed", rows, tokenizer)
    (tmp_path / "killed" / "rows-00000008.npz.7.tmp").write_bytes(b"half")  # of a kill in the middle of a file
    monkeypatch.setattr(candidates, "save_part", lambda *args: (saved.append(args[1]), save(*args)))
    build(tmp_path / "killed", rows, tokenizer, model)
    assert saved == [0, 4, 8, 12, 16]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    build(tmp_path / "killed", rows, tokenizer, model)  # nothing is left to do
    assert len(saved) == 5


def test_the_number_of_rows_per_file_does_not_change_the_table(tokenizer, model, tmp_path, monkeypatch):
    rows = dataclasses.replace(make_rows(3), texts=[("walking film",), ("slowly good",), ("walking bad",)])
    near = neighbours.Neighbours(lambda words: [["un-play", "softest", "talked", "film"]] * len(words), "near")
    monkeypatch.setattr(neighbours, "embedding_neighbours", None)
    settings, function = Settings("default", 2, 32, ""), compiled(model, RULES["default"].asked)
    tables = []
    for size in (256, 1, 2):
        monkeypatch.setattr(candidates, "ROWS_PER_FILE", size)
        monkeypatch.setattr(candidate_table, "ROWS_PER_FILE", size)
        build_table(tmp_path / str(size), rows, tokenizer, function, near, settings)
        tables.append(candidates_by_word(load_table(tmp_path / str(size), rows, tokenizer)[0], tokenizer))
    assert tables[0] == tables[1] == tables[2]
    several = tokenizer(["softest", "talked"], add_special_tokens=False)["input_ids"]
    assert [ids for ids in dict(tables[0])["walking"] if len(ids) > 1] == several


def test_another_number_of_variants_needs_no_new_table_and_anything_else_another_directory(
    tokenizer, model, tmp_path, capsys
):
    rows = make_rows(4)
    for _ in range(2):
        build(tmp_path / "out", rows, tokenizer, model, variants=5)
        assert "variants" not in capsys.readouterr().err
    before = (tmp_path / "out" / "rows-00000000.npz").stat().st_mtime_ns
    build(tmp_path / "out", rows, tokenizer, model, variants=9)
    assert f"{tmp_path / 'out'}: variants of a row: 9 from now on, not 5" in capsys.readouterr().err
    assert (tmp_path / "out" / "rows-00000000.npz").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "out" / "augmentation.json").read_text())["variants"] == 9
    with pytest.raises(InputError, match="holds an augmentation whose preset is 'default', not 'paper'"):
        build(tmp_path / "out", rows, tokenizer, model, "paper")
    with pytest.raises(InputError, match="holds an augmentation of other rows: give another --out"):
        build(tmp_path / "out", dataclasses.replace(rows, fingerprint="other"), tokenizer, model)
    (tmp_path / "out" / "rows-00000000.npz").unlink()
    build(tmp_path / "out", rows, tokenizer, model, "paper")
    assert json.loads((tmp_path / "out" / "augmentation.json").read_text())["preset"] == "paper", (
        "nothing was computed"
    )
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and holds no augmentation"):
        build(tmp_path / "else", rows, tokenizer, model)
    with pytest.raises(InputError, match="exists and holds no augmentation"):
        build(tmp_path / "else" / "notes.txt", rows, tokenizer, model)


@pytest.mark.parametrize("content", [b"", b"half of a file"])
def test_a_damaged_file_is_named(tokenizer, model, tmp_path, content):
    rows = make_rows(4)
    build(tmp_path / "out", rows, tokenizer, model)
    (tmp_path / "out" / "rows-00000000.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"rows-00000000\.npz: damaged .*delete this file"):
        load_table(tmp_path / "out", rows, tokenizer)
    (tmp_path / "out" / "augmentation.json").write_bytes(content)
    with pytest.raises(InputError, match=r"augmentation\.json: cannot be read"):
        load_table(tmp_path / "out", rows, tokenizer)


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer, model, tmp_path):
    bare = make_tokenizer(tmp_path)
    bare.mask_token = None
    with pytest.raises(InputError, match=r"has no \[MASK\]"):
        build(tmp_path / "out", make_rows(2), bare, model)


def test_a_vocabulary_padded_in_the_model_gives_no_id_that_the_tokenizer_lacks(tokenizer, tmp_path):
    config, params = make_mlm([*VOCABULARY, *map(str, range(40))])
    build(tmp_path / "out", make_rows(4), tokenizer, (config, params))
    table, _ = load_table(tmp_path / "out", make_rows(4), tokenizer)
    assert table.candidates.max() < len(tokenizer)
    assert len(WORDS) < len(tokenizer)


def test_two_processes_that_write_one_file_do_not_share_its_beginnings(tmp_path, monkeypatch):
    path, begun = tmp_path / "rows-00000000.npz", []
    replace = os.replace

    def meanwhile(temporary, final):
        begun.append(temporary)
        if len(begun) == 1:
            monkeypatch.setattr(os, "getpid", lambda: 1)
            candidate_table._replace(path, b"the other's")
        replace(temporary, final)

    monkeypatch.setattr(os, "replace", meanwhile)
    candidate_table._replace(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert len(set(begun)) == 2
