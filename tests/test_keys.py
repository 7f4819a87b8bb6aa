"""Keys of the server: what is kept of them, what they allow, and the verb that makes them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from llmasos.cli import main
from llmasos.core.environment import home
from llmasos.core.errors import UsageError
from llmasos.serving.guard import Guard
from llmasos.serving.keys import KeyFile, owner_of
from llmasos.serving.meter import Bucket, LimitError, Meter


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "home" / "keys.json")


def test_a_secret_is_found_again_and_is_in_no_file(keys: KeyFile) -> None:
    secret = keys.add("ada", rate=60)
    other = keys.add("bob")
    assert secret.startswith("lm-")
    assert len(secret) >= 46  # 256 bits
    assert secret != other
    text = keys.path.read_text()
    assert secret not in text
    assert secret[7:] not in text
    assert owner_of(secret, keys.current()).name == "ada"
    assert owner_of(secret[:-1], keys.current()) is None
    assert owner_of("", keys.current()) is None


def test_only_the_owner_reads_the_file(keys: KeyFile) -> None:
    keys.add("ada")
    keys.add("bob")
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600


def test_another_process_sees_what_has_changed(keys: KeyFile) -> None:
    secret = keys.add("ada")
    watching = KeyFile(keys.path)
    assert owner_of(secret, watching.current())
    keys.revoke("ada")
    assert watching.current() == {}
    again = keys.add("ada")
    assert owner_of(again, watching.current())
    assert owner_of(secret, watching.current()) is None


KEY = {"name": "ada", "digest": "0" * 64, "begins": "lm-", "created": ""}


@pytest.mark.parametrize(
    "content",
    ["", "[]", *(json.dumps({"keys": [one]}) for one in ({"name": "ada"}, KEY | {"digest": "x"}, KEY | {"rate": 0}))],
)
def test_a_damaged_file_is_told_and_lets_nobody_in(keys: KeyFile, content: str) -> None:
    secret = keys.add("ada")
    guard = Guard(keys)
    keys.path.write_text(content)
    with pytest.raises(UsageError, match="holds no keys"):
        KeyFile(keys.path).current()
    assert guard.enter({"authorization": f"Bearer {secret}", "host": "localhost"}).status == 503


def test_wrong_names_are_refused(keys: KeyFile) -> None:
    keys.add("website")
    for name in ("", "a b", "../x", "-x", "x" * 65, "website"):
        with pytest.raises(UsageError):
            keys.add(name)
    with pytest.raises(UsageError, match="did you mean 'website'"):
        keys.revoke("websit")


# -- limits -------------------------------------------------------------------------------------------


def test_a_bucket_refills_evenly_and_never_over() -> None:
    time = [0.0]
    bucket = Bucket(60, lambda: time[0])
    for _ in range(60):
        assert bucket.wait(1) == 0
        bucket.take(1)
    assert bucket.wait(1) == pytest.approx(1)
    time[0] = 0.5
    assert bucket.wait(1) == pytest.approx(0.5)
    time[0] = 1000
    assert bucket.wait(60) == 0
    bucket.take(60)
    assert bucket.wait(1) == pytest.approx(1)


def test_what_is_larger_than_a_bucket_waits_for_all_of_it_and_is_paid_off() -> None:
    time = [0.0]
    bucket = Bucket(60, lambda: time[0])
    assert bucket.wait(600) == 0
    bucket.take(600)
    assert bucket.wait(1) == pytest.approx(541)
    bucket.take(-600)
    assert bucket.wait(60) == 0


def test_tokens_that_were_not_computed_are_given_back(keys: KeyFile) -> None:
    keys.add("ada", tokens=100)
    meter = Meter(keys.current()["ada"])
    meter.spend(90)
    with pytest.raises(LimitError) as error:
        meter.spend(50)
    assert 20 <= error.value.retry_after <= 25
    meter.give_back(80)
    meter.spend(50)


def test_requests_at_once_are_counted(keys: KeyFile) -> None:
    keys.add("ada", concurrent=2)
    meter = Meter(keys.current()["ada"])
    meter.enter()
    meter.enter()
    with pytest.raises(LimitError, match="2 requests at once"):
        meter.enter()
    meter.leave()
    meter.enter()


# -- the verb -----------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))


@pytest.mark.usefixtures("own")
def test_the_secret_goes_to_standard_output_and_the_rest_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "ada", "--rate", "60/min", "--tokens", "5000", "--concurrent", "3"]) == 0
    told = capsys.readouterr()
    secret = told.out.strip()
    assert secret.startswith("lm-")
    assert secret not in told.err
    key = owner_of(secret, KeyFile().current())
    assert (key.rate, key.tokens, key.concurrent) == (60, 5000, 3)
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "ada" in listed
    assert "5,000" in listed
    assert secret not in listed
    assert main(["keys", "list", "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["keys"][0]["rate"] == 60
    assert key.digest not in text
    assert main(["keys", "revoke", "ada", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"revoked": "ada", "left": []}
    assert not KeyFile().current()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    "words", ["add", "list ada", "revoke", "revoke ada", "ad ada", "add ada --rate 0", "add ada --rate 60/h",
              "revoke ada --rate 5", "add ada --concurrent 0"],
)  # fmt: skip
def test_wrong_words_are_told(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", *words.split()]) == 2
    assert "hint: " in capsys.readouterr().err
    assert not (home() / "keys.json").exists()


@pytest.mark.usefixtures("own")
def test_listening_beyond_this_machine_needs_a_key() -> None:
    from llmasos.core.config import ServeConfig
    from llmasos.serving.start import guarded

    with pytest.raises(UsageError, match="there is no key"):
        guarded(ServeConfig(host="0.0.0.0"))
    secret = KeyFile().add("ada")
    guard = guarded(ServeConfig(host="0.0.0.0"))
    assert guard.enter({"host": "models.example.com"}).status == 401
    assert guard.enter({"host": "models.example.com", "authorization": f"Bearer {secret}"}).name == "ada"
    KeyFile().revoke("ada")
    assert guard.enter({"host": "localhost"}).status == 401


@pytest.mark.parametrize(("hosts", "origins"), [(["a b"], []), (["http://x"], []), (["x:80"], []), ([], ["x.com"]),
                                                ([], ["https://x.com/page"]), ([], ["*"])])  # fmt: skip
def test_hosts_and_origins_that_make_no_sense_are_refused(hosts: list[str], origins: list[str]) -> None:
    with pytest.raises(UsageError, match="allow_"):
        Guard(hosts=hosts, origins=origins)
