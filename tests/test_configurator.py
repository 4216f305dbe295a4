"""Settings: every mistake has one clear message with its place, and a config file can execute nothing."""
import ast
import dataclasses
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

import configurator
from model import GPTConfig
from model_loop import FROM_DATASET, LoopConfig

SCRIPT = '''"""A script.

    python script.py
"""
import os

name = "plain"          # a text
count = 3               # a whole number
rate = 1e-3             # a number
flag = False            # yes or no
wide: float | str = 1.0  # a number or a word
some: int | list[int] = 8  # one or more
maybe: float | None = None  # a number or None
lengths: list[int] = [1, 2]  # a list
share = 0.5             # >= 0, < 1: with both ends
odd = 0                 # 0 or >= 2: with a hole
positive: int | list[int] = 4  # > 0: one or more
limit: float | None = None  # <= -1e-3: or None
step: float | str = 1.0  # > 0: or a word
words: list[str] = []   # texts
CONSTANT = 5            # none of them


def function(value=1):
    later = 2           # none of them
    return later + value


given, of_model, keys = configure(__file__)
'''


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(*argv, **groups):
        argv = [str(a) for a in argv]
        return configurator.configure("script.py", groups, argv)
    return run


@pytest.fixture
def config(tmp_path):
    """Write lines to a config file; returns its name."""
    def write(*lines, name="some.py"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return name
    return write


def refused(script, *argv):
    """The message that ends the program."""
    with pytest.raises(SystemExit) as e:
        script(*argv)
    assert isinstance(e.value.code, str)  # exit status 1
    assert len(e.value.code.splitlines()) == 1
    return e.value.code


# ---- what is accepted

def test_defaults(script):
    own, further, given = script()
    assert own == {"name": "plain", "count": 3, "rate": 1e-3, "flag": False, "wide": 1.0, "some": 8, "maybe": None,
                   "lengths": [1, 2], "words": [], "share": 0.5, "odd": 0, "positive": 4, "limit": None, "step": 1.0}
    assert (further, given) == ({}, set())


@pytest.mark.parametrize(("key", "text", "value"), [
    ("count", "5 * 1000", 5000), ("count", "2 + 3 * 4 - 1", 13), ("count", "-7", -7), ("count", "7 // 2", 3),
    ("rate", "-1e-3", -1e-3), ("rate", "1 / 4", 0.25), ("rate", "3", 3.0), ("rate", "--2", 2.0),
    ("flag", "True", True), ("flag", "False", False), ("wide", "2", 2.0), ("some", "4", 4),
    ("some", "[4, 6, 2 * 4]", [4, 6, 8]), ("some", "(4, 6)", [4, 6]), ("maybe", "None", None), ("maybe", "0.5", 0.5),
    ("maybe", "1", 1.0), ("lengths", "[]", []), ("words", "['a: --b=[1]', '']", ["a: --b=[1]", ""])])
def test_constant_expressions(script, config, key, text, value):
    for argument in (config(f"{key} = {text}"), f"--{key}={text}"):
        own, _, given = script(argument)
        assert own[key] == value
        assert type(own[key]) is type(value)
        assert given == {key}


def test_strings(script, config):
    for text in ("1+2=", "12", "True", "[1]", "None", "", "a=b", "--x", "it's", "1e-3"):
        assert script(f"--name={text}")[0]["name"] == text
        assert script(config(f"name = {text!r}"))[0]["name"] == text
    assert script("--wide=word")[0]["wide"] == "word"
    assert script("--wide=1+2=")[0]["wide"] == "1+2="
    assert script(config("wide = 'word'"))[0]["wide"] == "word"


def test_short_forms_of_the_command_line(script):
    assert script("--flag")[0]["flag"] is True
    assert script("--flag=true")[0]["flag"] is True
    assert script("--some=4,6")[0]["some"] == [4, 6]


def test_the_later_one_wins(script, config):
    one, two = config("count = 1", "rate = 0.1", name="one.py"), config("count = 2", "count = 20", name="two.py")
    for argv, count in (((one, two), 20), ((two, one), 1), ((one, "--count=5"), 5), (("--count=5", one), 1),
                        (("--count=5", "--count=6"), 6)):
        own, _, given = script(*argv)
        assert own["count"] == count
        assert own["rate"] == (0.1 if one in argv else 1e-3)
        assert given == ({"count", "rate"} if one in argv else {"count"})


def test_comments_and_docstrings_in_a_config_file(script, config):
    assert script(config('"""What it is."""', "# a comment", "count = 4  # another", ""))[0]["count"] == 4


def test_further_groups(script):
    more = {"width": configurator.Setting(8, "int", "how wide")}
    own, further, given = script("--width=9", "--count=1", more=more)
    assert (further, given) == ({"width": 9}, {"width", "count"})
    assert "width" not in own


# ---- what is refused

def test_unknown_keys(script, config):
    where = config("count = 1", "", "rat = 0.1")
    assert re.match(r"some\.py:3: .*'rat'.*'rate'", refused(script, where))
    assert re.match(r"--rat: .*'rat'.*'rate'", refused(script, "--rat=0.1"))
    assert "--help" in refused(script, "--xyzzy=1")  # nothing is near
    for hidden in ("CONSTANT", "later", "value", "given", "os", "function"):
        assert f"'{hidden}'" in refused(script, f"--{hidden}=1")
        assert f"'{hidden}'" in refused(script, config(f"{hidden} = 1"))


@pytest.mark.parametrize(("key", "text"), [
    ("count", "1.5"), ("count", "True"), ("count", "None"), ("count", "[1]"), ("count", "4 / 2"), ("count", "1 / 0"),
    ("rate", "None"), ("rate", "True"), ("rate", "[0.1]"), ("flag", "1"), ("flag", "None"), ("some", "1.5"),
    ("some", "[1.5]"), ("some", "[True]"), ("some", "[[1]]"), ("maybe", "True"), ("lengths", "3"),
    ("lengths", "[None]"), ("count", "2 ** 3"), ("count", "1 if 1 else 2"), ("count", "{}"), ("count", "-True"),
    ("count", "1 + True"), ("count", "1 < 2"), ("count", ""), ("count", "1 +"), ("rate", "1" + "0" * 400)])
def test_wrong_types_both_ways(script, config, key, text):
    message = refused(script, f"--{key}={text}")
    assert message.startswith(f"--{key}: ")
    assert refused(script, config("rate = 1.0", f"{key} = {text}")).startswith("some.py:2: ")


@pytest.mark.parametrize(("key", "text"), [
    ("name", "3"), ("name", "None"), ("name", "['a']"), ("name", "b'a'"), ("name", "'a' + 'b'"), ("name", "'a' * 2"),
    ("count", "'3'"), ("rate", "'0.1'"), ("flag", "'True'"), ("some", "['1']"), ("wide", "True"),
    ("lengths", "[1] * 3"), ("words", "'a'"), ("words", "['a', 1]"), ("words", "['a'.upper()]")])
def test_wrong_types_in_a_file(script, config, key, text):
    assert refused(script, config(f"{key} = {text}")).startswith(f"some.py:1: {key}: ")


@pytest.mark.parametrize("text", ["--count=x", "--rate=fast", "--flag=yes", "--flag=", "--some=[1,x]", "--maybe=none",
                                  "--lengths=a", "--count=os.getpid()", "--rate=rate", "--some=[count]", "--count"])
def test_wrong_values_on_the_command_line(script, text):
    assert text.split("=")[0] in refused(script, text)


@pytest.mark.parametrize("lines", [
    "import os", "from os import path", "open('made', 'w')", "count = open('made', 'w').write('x')", "count += 1",
    "name = __import__('os').system('touch made')", "name = f'{open(\"made\", \"w\")}'", "name = f'x'", "count = rate",
    "count = count", "count = [1][0]", "count = {1: 2}[1]", "name = 'a'.upper()", "name = configurator.__doc__",
    "some = [open('made', 'w') for _ in (1, 2)]", "count = (lambda: 1)()", "count = (rate := 1)", "count: int = 5",
    "count = rate = 1", "count, rate = 1, 2", "some[0] = 1", "name.x = 1", "exec(\"open('made', 'w')\")",
    "if True:\n    count = 1", "for count in [1]:\n    pass", "def count():\n    pass", "class count:\n    pass",
    "@open('made', 'w')\ndef count(): pass", "with open('made', 'w') as f:\n    pass",
    "try:\n    count = 1\nfinally:\n    pass",
    "assert open('made', 'w')", "del count", "pass", "global count", "while False:\n    pass", "count = 1; import os",
    "count = 1 if open('made', 'w') else 2", "count = True and 1", "count = ~1", "count = 1 @ 2", "some = [*[1, 2]]",
    "count =", "  count = 1", "count = 1 2", "'unclosed", "count = '\0'", "print('made', file=open('made', 'w'))"])
def test_a_config_file_executes_nothing(script, config, tmp_path, lines):
    before = set(tmp_path.iterdir()) | {tmp_path / "some.py"}
    assert re.match(r"some\.py:[123]: \S", refused(script, config(lines)))
    assert set(tmp_path.iterdir()) == before


def test_files_that_are_no_config(script, tmp_path):
    assert "none.py" in refused(script, "none.py")
    assert "config/" in refused(script, "none.py")
    (tmp_path / "folder").mkdir()
    assert "folder" in refused(script, "folder")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    assert "binary.py" in refused(script, "binary.py")
    assert refused(script, "count=3")  # the dashes forgotten


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_config_file_as_editors_save_it(script, tmp_path, encoding):
    (tmp_path / "saved.py").write_bytes("# 설정\r\ncount = 7\r\nname = 'é가'\r\n".encode(encoding))
    own, _, given = script("saved.py")
    assert (own["count"], own["name"], given) == (7, "é가", {"count", "name"})


@pytest.mark.parametrize("encoding", ["cp949", "utf-16", "johab"])
def test_a_config_file_of_another_encoding(script, tmp_path, encoding):
    (tmp_path / "saved.py").write_bytes("# 설정\ncount = 7\n".encode(encoding))
    assert refused(script, "saved.py") == "saved.py is not text in UTF-8: save it as UTF-8"


@pytest.mark.parametrize("encoding", ["ascii", "euc_kr", "cp1252"])
def test_output_never_fails_for_a_character(script, monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    script()
    print("▁∑é🙂 done")
    sys.stdout.flush()
    assert raw.getvalue().endswith(b" done\n")


@pytest.mark.parametrize(("key", "good", "bad"), [
    ("share", ("0", "0.99"), ("-1e-9", "1", "2.5")), ("odd", ("0", "2", "7"), ("1", "-1")),
    ("positive", ("1", "[1, 2]", "[]"), ("0", "[1, 0]", "-3")), ("limit", ("None", "-0.001", "-7"), ("0", "-1e-4")),
    ("step", ("1e-30", "'word'"), ("0", "-1.0"))])
def test_ranges_both_ways(script, config, key, good, bad):
    for text in good:
        assert script(f"--{key}={text}")[0] == script(config(f"{key} = {text}"))[0] or text == "'word'"
    for text in bad:
        for message, where in ((refused(script, f"--{key}={text}"), f"--{key}: "),
                               (refused(script, config("count = 2", f"{key} = {text}")), f"some.py:2: {key}: ")):
            assert message.startswith(where)
            assert "is out of range; it must be " in message


@pytest.mark.parametrize("text", ["1e999", "-1e999", "1e999 - 1e999", "nan", "inf", "-inf"])
def test_numbers_are_finite(script, config, text):
    for key in ("rate", "share", "limit", "maybe"):
        assert refused(script, f"--{key}={text}").startswith(f"--{key}: ")
        assert refused(script, config(f"{key} = {text}")).startswith("some.py:1: ")


@pytest.mark.parametrize("number", [2 ** 63, -(2 ** 63), 10 ** 30])
def test_whole_numbers_that_no_tensor_holds(number):
    setting = configurator.Setting(1, "int", "a count")
    with pytest.raises(ValueError, match="too large"):
        configurator.in_range(number, setting)
    assert configurator.in_range(2 ** 63 - 1, setting) == 2 ** 63 - 1


SCRIPTS = ["train.py", "sample.py", "evaluate.py", "analyze.py", "sweep.py", "bench.py",
           "data/prepare.py", *(str(path.relative_to(ROOT)) for path in sorted([*ROOT.glob("data/*/prepare.py"),
                                                                                *ROOT.glob("tasks/[a-z]*.py")]))]
OUT_OF_RANGE = {
    "train.py": ["grad_clip=-1", "ema_decay=1.5", "ema_decay=1.0", "weight_decay=-1", "n_layer=0", "min_lr=-1",
                 "lr_decay_iters=-3", "flip_rows=2", "label_smoothing=-0.5", "label_smoothing=2", "learning_rate=-1",
                 "learning_rate=0", "beta1=2", "beta2=1", "block_size=0", "n_head=0", "n_embd=0", "n_embd=-16",
                 "seed=-1", "eval_iters=-5", "eval_iters=0", "eval_interval=0", "log_interval=0", "batch_size=0",
                 "gradient_accumulation_steps=0", "max_iters=0", "warmup_iters=-1", "num_loops=0", "num_loops=[4,0]",
                 "dropout=1", "dropout=-0.1", "place_ids=0", "place_subset=-1", "alpha=-1.0", "alpha=0",
                 "grad_loops=-1", "halt_threshold=-1", "think_threshold=-1", "min_loops=0", "prompt_loops=-1",
                 "think_loops=-1", "log_scale=1", "log_scale=-5", "anderson=-1", "learning_rate=1e999",
                 "place_runs=1.1", "place_runs=-0.1", "place_scale=0", "place_scale=-1", "save_every=-1"],
    "sample.py": ["temperature=-1", "temperature=1e-320", "num_samples=-2", "num_samples=0", "top_k=-5", "seed=-1",
                  "max_new_tokens=-1", "num_loops=0", "halt_threshold=-1"],
    "evaluate.py": ["digits=[0]", "digits=[4,-1]", "problems=0", "batch_size=0", "grid=-1", "eval_iters=-1",
                    "seed=-1", "num_loops=0"],
    "analyze.py": ["loop_multiple=-3", "tokens=-5", "tokens=0", "sequences=-1", "sequences=0", "iterations=0",
                   "converged=-1", "digits=[0]", "seed=-1"],
    "sweep.py": ["seeds=[1,-1]", "parallel=-2", "timeout=-1"],
    "bench.py": ["replays=0", "workers=0", "seconds=0"],
    "data/prepare.py": ["train_rows=0", "val_rows=-1", "seed=-1"],
    "tasks/addition.py": ["max_digits=0", "max_digits=101", "max_places=-1", "carry_rows=1.5", "carry_rows=-0.1",
                          "few_rows=2"],
}


def all_settings(name):
    """The settings of a script and of the models."""
    own = configurator.read_settings((ROOT / name).read_text(encoding="utf-8"))
    model = {k: s for k, s in configurator.class_settings(LoopConfig).items() if k not in FROM_DATASET}
    return own | (model if name in ("train.py", "sample.py", "evaluate.py", "analyze.py") else {})


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_has_a_range_which_its_default_is_in(name):
    for key, setting in all_settings(name).items():
        assert bool(setting.range) == bool(re.search(r"\b(int|float)\b", setting.kind)), key
        assert configurator.in_range(setting.default, setting) == setting.default


@pytest.mark.parametrize(("name", "text"), [(name, x) for name, texts in OUT_OF_RANGE.items() for x in texts])
def test_numbers_out_of_range(name, text, config, tmp_path):
    settings, key = all_settings(name), text.partition("=")[0]
    file = str(tmp_path / config(text))
    for argument, where in ((f"--{text}", f"--{key}: "), (file, f"{file}:1: {key}: ")):
        with pytest.raises(SystemExit) as e:
            configurator.read_arguments([argument], settings)
        assert str(e.value).startswith(where)
        assert re.search("out of range|not a finite number", str(e.value))
        assert len(str(e.value).splitlines()) == 1


# ---- dataclasses and --help

@dataclass
class Base:
    """Settings."""
    width: int = 1      # of the base
    depth: int = 2      # how deep
    kind: str = "a"     # which


@dataclass
class Child(Base):
    width: int = 5      # of the child
    extra: float | None = None  # only here

    def method(self):
        unrelated = 3   # no setting
        return unrelated


def test_class_settings_follow_the_inheritance():
    found = configurator.class_settings(Child)
    assert {k: s.default for k, s in found.items()} == {"width": 5, "depth": 2, "kind": "a", "extra": None}
    assert [found[k].comment for k in ("width", "depth", "extra")] == ["of the child", "how deep", "only here"]
    assert found["extra"].kind == "float | None"
    assert set(configurator.class_settings(Base)) == {"width", "depth", "kind"}
    assert set(configurator.class_settings(Child, ("depth", "extra", "none"))) == {"depth", "extra"}


@pytest.mark.parametrize("cls", [GPTConfig, LoopConfig])
def test_class_settings_of_the_models(cls):
    wanted = {f.name: f.default for f in dataclasses.fields(cls)}
    wanted = {k: list(v) if isinstance(v, tuple) else v for k, v in wanted.items()}
    found = configurator.class_settings(cls)
    assert {k: s.default for k, s in found.items()} == wanted
    assert all(s.comment for s in found.values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_every_key(scripts, name):
    if not (ROOT / name).exists():
        pytest.skip(f"{name} does not exist yet")
    command = ("data/prepare.py", f"--task={Path(name).stem}") if name.startswith("tasks/") else (name,)
    out = scripts(*command, "--help").out
    shown = "prepare.py" if "prepare" in " ".join(command) else name
    name = {"addition": "data/prepare.py", "shakespeare": "data/text/prepare.py",
            "shakespeare_char": "data/text/prepare.py"}.get(Path(name).parent.name, name)  # which they call
    top = re.split(r"^def |^\S.* = configure\(", (ROOT / name).read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    keys = re.findall(r"^([a-z_0-9]+)(?:: [^=]+)? = ([^#\n]*?) *# (.*)$", top, re.MULTILINE)
    assert len(keys) >= (1 if name.startswith("tasks/") else 2)
    if name == "train.py":
        keys += [(f.name, repr(f.default), "") for f in dataclasses.fields(LoopConfig) if f.name not in FROM_DATASET]
    for key, default, comment in keys:
        default = re.escape(repr(ast.literal_eval(default)))
        assert re.search(rf"^  --{key}={default} +{re.escape(comment) or '.'}", out, re.MULTILINE), key
    assert f"usage: python {shown}" in out


def test_help_of_a_script(script, capsys):
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as e:
            script("--count=4", flag)
        assert e.value.code in (0, None)
        out = capsys.readouterr().out
        assert "A script." in out
        assert "--rate=0.001" in out
        assert "later" not in out
