# SPDX-License-Identifier: MIT
"""The command on the loopback NIC: what it prints, its JSON, and its exit status. No privilege, no terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pagepool import probe
from pagepool.cli.failure import failure_line
from pagepool.cli.interruption import Interruption
from pagepool.cli.main import main
from pagepool.cli.per_queue import Filters, parse_filters, parse_rules
from pagepool.cli.probe import _WORDS as PROBE_WORDS
from pagepool.drivers.capture import read_capture

COMMAND = [sys.executable, "-W", "error", "-m", "pagepool.cli"]
LOOPBACK = ["rx", "--loopback"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def rx_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main([*LOOPBACK, "--json", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_summary_stands_at_the_end_of_plain_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LOOPBACK, "--seconds", "1.2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "receiving over loopback NIC (software, in this process)"
    assert "pages:" in lines[1]
    assert "recycled" in lines[1]
    assert lines[3].endswith("bit/s")
    assert "frames in 1." in lines[3]
    assert any(line.startswith("page allocator called") for line in lines)
    assert any(line.startswith("mapped for the device   once") for line in lines)
    assert max(map(len, lines[3:])) < 80
    assert "\x1b" not in out


def test_json_is_samples_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    *samples, summary = rx_json(capsys, "--seconds", "1.2")
    assert [sample["type"] for sample in samples] == ["sample"]
    assert summary["type"] == "summary"
    assert summary["frames"] == summary["queues"][0]["frames"] > 0
    assert summary["bytes"] == 60 * summary["frames"]
    assert summary["maps"] == 1
    assert summary["allocator-calls"] == summary["queues"][0]["page-pool"]["alloc-slow"] < 64
    assert 0.9 < summary["recycle-ratio"] <= 1
    assert summary["lost"] == 0


def test_json_spells_the_kernels_counters_as_netlink_does(capsys: pytest.CaptureFixture[str]) -> None:
    *_, summary = rx_json(capsys, "--seconds", "0.2")
    pool = summary["queues"][0]["page-pool"]
    assert {"id", "inflight", "inflight-mem", "alloc-fast", "alloc-slow-high-order"} <= pool.keys()
    assert {"recycle-cached", "recycle-ring-full", "recycle-released-refcnt"} <= pool.keys()
    assert pool["inflight-mem"] == 4096 * pool["inflight"]


def test_estimate_says_from_what_it_was_made(capsys: pytest.CaptureFixture[str]) -> None:
    *_, summary = rx_json(capsys, "--seconds", "0.2")
    estimate = summary["without-pool-estimate"]
    measured = estimate["measured"]
    assert set(measured) == {"pool", "page", "buffer", "mapping"}
    assert all(cost["repeats"] >= 200 and cost["ns"] > 0 for cost in measured.values())
    assert measured["page"]["ns"] > measured["pool"]["ns"]
    assert estimate["page-seconds"] == pytest.approx(measured["page"]["ns"] * summary["frames"] / 1e9)


def test_each_queue_has_its_pool(capsys: pytest.CaptureFixture[str]) -> None:
    *_, summary = rx_json(capsys, "--seconds", "0.3", "--queue", "0", "--queue", "2", "--queue", "0")
    assert [queue["queue"] for queue in summary["queues"]] == [0, 2]
    assert len({queue["page-pool"]["id"] for queue in summary["queues"]}) == 2
    assert all(queue["frames"] for queue in summary["queues"])
    assert summary["maps"] == 2


def test_one_thread_polls_all_queues_if_told(capsys: pytest.CaptureFixture[str]) -> None:
    queues = [word for number in range(4) for word in ("--queue", str(number))]
    cpu = str(min(os.sched_getaffinity(0)))
    *_, summary = rx_json(capsys, "--seconds", "0.3", *queues, "--threads", "1", "--cpu", cpu)
    assert summary["threads"] == 1
    assert all(queue["frames"] for queue in summary["queues"])
    assert tasks(*queues) == tasks(*queues, "--threads", "1") + 3


def tasks(*arguments: str) -> int:
    """Return how many threads the command has while it receives."""
    command = [*COMMAND, *LOOPBACK, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = len(os.listdir(f"/proc/{process.pid}/task"))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    return found


@pytest.mark.parametrize("action", ["drop", "pass", "tx"])
def test_action(capsys: pytest.CaptureFixture[str], action: str) -> None:
    *_, summary = rx_json(capsys, "--seconds", "0.2", "--action", action)
    assert summary["action"] == action
    assert summary["frames"] > 0
    assert summary["queues"][0]["exact"]["fresh"] < summary["frames"]


def test_written_frames_can_be_read_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    *_, summary = rx_json(capsys, "--seconds", "0.2", "--write", str(path), "--queue", "0", "--queue", "1")
    frames = list(read_capture(path))
    assert len(frames) == summary["frames"] == summary["capture"]["frames"] > 0
    assert os.listdir(tmp_path) == [path.name]
    assert {frame.interface for frame in frames} == {0, 1}
    assert {len(frame.data) for frame in frames} == {60}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["rx", "--no-such-option"], 2, "No such option"),
        (["no-such-command"], 2, "No such command"),
        (["rx", "--queue", "one"], 2, "integer"),
        (["rx", "--queue", "-1"], 2, "--queue"),
        (["rx", "--action", "keep"], 2, "one of drop, pass, tx"),
        ([*LOOPBACK, "--filter", "udp"], 1, "--filter needs AF_XDP"),
        ([*LOOPBACK, "--program", "a.o"], 1, "--program needs AF_XDP"),
        ([*LOOPBACK, "lo"], 2, "--loopback is a NIC of its own"),
        ([*LOOPBACK, "--rate", "1000"], 2, "--rate is for the generator"),
        (["rx", "lo", "--rate", "1000"], 2, "--rate is for the generator"),
        ([*LOOPBACK, "--window", "2s"], 2, "--window is how long --sql"),
        ([*LOOPBACK, "--write", "/no/such/folder/x.pcapng"], 1, "No such file or directory"),
        ([*LOOPBACK, "--queue", "4000"], 1, "128"),
        (["rx", "lo", "--steer", "udp"], 2, "--steer 'udp': it is QUEUE:EXPRESSION"),
        (["rx", "lo", "--steer", "3:"], 2, "it is QUEUE:EXPRESSION"),
        ([*LOOPBACK, "--steer", "0:udp"], 2, "--steer gives rules to the NIC of an interface: give IFACE"),
        (["rx", "lo", "--steer", "0:not udp"], 1, "'not' cannot be said in a rule of a NIC"),
        (["rx", "lo", "--steer", "0:udp", "--queue", "1", "--queue", "2"], 2, "queue 0 is not received from, but 1, 2"),
        (["rx", "lo", "--filter", "1:udp", "--queue", "0"], 2, "--filter 1:udp: queue 1 is not received from, but 0"),
        (["rx", "lo", "--filter", "udp", "--filter", "tcp"], 2, "--filter twice for all queues"),
        (["rx", "lo", "--filter", "0:udp", "--filter", "0:tcp"], 2, "--filter twice for queue 0"),
        (["rx", "lo", "--program", "a.o", "--filter", "0:udp"], 2, "leave --filter away"),
        ([*LOOPBACK, "--filter", "2:udp"], 1, "--filter needs AF_XDP"),
        ([*LOOPBACK, "--threads", "0"], 2, "--threads"),
        ([*LOOPBACK, "--threads", "2"], 2, "--threads 2: there is one queue"),
        ([*LOOPBACK, "--queue", "0", "--queue", "1", "--threads", "3"], 2, "there are 2 queues"),
        ([*LOOPBACK, "--queue", "0", "--queue", "1", "--threads", "1", "--cpu", "0", "--cpu", "0"], 2, "threads: 1"),
        (["rx", "no-such-iface"], 1, "no such interface"),
        (["probe", "no_such_probe"], 1, "no probe no_such_probe"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, says: str) -> None:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pagepool: ")
    assert err.count("\n") == 1
    assert says in err


def test_a_filter_is_for_one_queue_or_for_all() -> None:
    assert parse_filters([]) == Filters("all")
    assert not parse_filters(["all"])
    found = parse_filters(["udp", "2: tcp port 53", " 0 :arp"])
    assert found == Filters("udp", ((2, "tcp port 53"), (0, "arp")))
    assert [found.of(queue) for queue in range(3)] == ["arp", "udp", "tcp port 53"]
    for expression in ("2001:db8::1", "2:0:0:0:0:0:0:1 or arp", "1::/16"):
        assert parse_filters([expression]) == Filters(expression)
    assert parse_rules(["2:udp", "2:arp"]) == ((2, "udp"), (2, "arp"))


@pytest.mark.parametrize("suffix", ["pcapng", "parquet"])
def test_what_cannot_be_opened_empties_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"precious.{suffix}"
    path.write_bytes(b"last night")
    for wrong in (["no-such-iface"], ["--loopback", "--cpu", "99999"], ["--loopback", "--threads", "9"]):
        assert main(["rx", *wrong, "--write", str(path)]) > 0
        assert path.read_bytes() == b"last night"
    assert os.listdir(tmp_path) == [path.name]
    assert capsys.readouterr().out == ""


def test_capture_is_readable_while_it_is_written_and_after_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    command = [*COMMAND, *LOOPBACK, "--write", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        process.kill()
        process.communicate(timeout=20)
    frames = list(read_capture(path))  # raises at half a block
    assert frames
    assert {len(frame.data) for frame in frames} == {60}


def test_full_disk_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LOOPBACK, "--seconds", "5", "--write", "/dev/full"]) == 1
    assert capsys.readouterr().err == "pagepool: cannot write /dev/full: No space left on device\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_two_signals_at_once_are_one(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, *LOOPBACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert "frames in" in out


def test_a_signal_while_something_is_opened_waits_until_it_can_be_closed() -> None:
    with Interruption() as signals:
        signals.hold()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signals.release()
        signals.hold()
        signal.raise_signal(signal.SIGTERM)
        signals.forget()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # of two the second is the first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_nohup_is_respected(tmp_path: Path) -> None:
    with subprocess.Popen(
        ["nohup", *COMMAND, *LOOPBACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert "pages:" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "frames in" in process.communicate(timeout=20)[0]


def test_after_sigstop_there_is_one_line_not_one_a_second() -> None:
    with subprocess.Popen([*COMMAND, *LOOPBACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        start = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        awake = time.monotonic() - start - 4
    assert sum("pages:" in line for line in out.splitlines()) <= awake + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_with_the_summary_and_status_0(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, *LOOPBACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "receiving" in process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err == ""
    assert "frames in" in out
    assert "recycled" in out


def test_a_second_ctrl_c_while_the_first_is_on_its_way_is_no_bug() -> None:
    def interrupted_twice() -> None:
        lock = threading.Lock()
        with lock:
            lock.release()  # as in Event.wait: the first came in the wait, the second before the lock was back
            raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="unlocked") as caught:
        interrupted_twice()
    assert failure_line(caught.value) == ("interrupted", 130)
    assert failure_line(RuntimeError("a bug")) == (None, 1)


def test_reader_that_goes_away_ends_it_quietly() -> None:
    with subprocess.Popen([*COMMAND, *LOOPBACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_help_without_arguments() -> None:
    done = run()
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("rx", "probe", "kernel-pools"))
    assert run("rx", "--help").returncode == 0
    assert run("rx", "--help").stdout.startswith("Usage: pagepool rx [OPTIONS] [IFACE]...\n")
    assert run("--version").stdout == f"pagepool {version('pagepool')}\n"


def test_probe_names_every_probe_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in probe.PROBES)
    assert all(PROBE_WORDS[name] in out for name in probe.PROBES)
    assert main(["probe", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["probes"]
    assert answers.keys() == probe.PROBES.keys()
    assert all(answer["reason"] for answer in answers.values())


def test_probe_of_names_answers_by_its_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(probe.PROBES, "vfio", lambda: probe.Answer(False, "not today"))
    assert main(["probe", "compiled_core"]) == 0
    assert main(["probe", "compiled_core", "vfio"]) == 1
    assert "not today" in capsys.readouterr().out


def test_without_privilege_it_says_why_it_is_the_loopback_nic(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(probe.PROBES, "netns", lambda: probe.Answer(False, "EPERM: needs CAP_SYS_ADMIN"))
    assert main(["rx", "--seconds", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "no AF_XDP on a veth pair for this user: netns: EPERM: needs CAP_SYS_ADMIN" in out
    assert main(["rx", "--seconds", "0.2", "--json"]) == 0
    assert "EPERM" in json.loads(capsys.readouterr().out.splitlines()[-1])["reason"]
    assert main(["rx", "--seconds", "0.2", "--rate", "1000"]) == 1
    assert "--rate needs AF_XDP, and this is the loopback NIC (no AF_XDP" in capsys.readouterr().err


def test_without_extras_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from pagepool.cli.main import main; sys.exit(main(['probe']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "pagepool: the command needs typer and rich: pip install 'pagepool[cli]'\n"
