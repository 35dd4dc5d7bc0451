"""What a file of metrics may cost: 5 s and 400 MiB, whatever is in it."""

import json

import pytest
from make import python

LIMIT_SECONDS, LIMIT_MIB = 5, 400

MEASURE = """
import json, sys, time
from swavg.errors import InputError
from swavg.series import discover
begun = time.process_time()
try:
    series = discover([sys.argv[1]], metrics_file=sys.argv[2])
    found = [dict(snapshot.metrics) for snapshot in series.snapshots]
except InputError as error:
    found = str(error)
seconds = time.process_time() - begun
# Not ru_maxrss, which begins with what the parent held.
status = open("/proc/self/status").read()
mib = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps([found, seconds, mib]))
"""

LARGE = "more than a table of metrics"
FILES = [
    ("step,x\n" + "".join(f"{i},{i}\n" for i in range(400_000)), [{"x": 10.0}, {"x": 20.0}]),
    ("step,x\n" + "10,1\n" * 2_000_000, LARGE),
    ("step,x\n" + "\n" * 20_000_000, LARGE),
    ("{}\n" * 5_000_000, LARGE),
    ("[" + "{}," * 5_000_000 + "{}]", "too large"),
    ('[{"step":10},' + '"ab",' * 3_000_000 + '"a"]', "no list of JSON objects"),
    ("[" * 5_000_000, "too large"),
    ('{"step": 10, "a": "' + "x" * 40_000_000 + '"}', "too large"),
    ("".join(f'{{"step":10,"n{i}":1}}\n' for i in range(100_000)), "more than 10,000 columns"),
    ("step," + ",".join(f"c{i}" for i in range(4999)) + ("\n10" + ",1" * 4999) * 2000, LARGE),
    ('step,x\n1,"' + "a\n" * 5_000_000, "is no CSV"),
    ("\n" * 5_000_000, "is empty"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "expected"), FILES, ids=range(len(FILES)))
def test_a_file_of_metrics_is_read_or_refused_in_seconds(tmp_path, text, expected):
    run = tmp_path / "run"
    run.mkdir()
    for step in (10, 20):
        (run / f"step_{step}.pt").write_bytes(b"x")
    (tmp_path / "metrics").write_text(text)
    done = python(MEASURE, str(run), str(tmp_path / "metrics"))
    assert done.returncode == 0, done.stderr
    found, seconds, mib = json.loads(done.stdout)
    assert expected in found if isinstance(expected, str) else found == expected
    assert seconds < LIMIT_SECONDS
    assert mib < LIMIT_MIB
