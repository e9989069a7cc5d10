"""What TensorBoard shows first of run folders: the five curves, and what tells runs apart."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.request

import pytest
from small import EVERY_OPTION
from tensorboard import program

CURVES = "eval/MSE|eval/Mean Reciprocal Rank|training/Factorization Loss"
CURVES += "|training/Joint Loss|training/MSE"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Two tabs in frames; then instead of them the text that is seen there, shadow trees' too.
PAGE = """<iframe width="1600" height="1800" src="ADDRESS#timeseries"></iframe>
<iframe width="1600" height="1800" src="ADDRESS#hparams"></iframe><script>
setTimeout(() => {
  const tabs = [0, 1].map(k => {
    const page = frames[k].document, seen = [];
    const walk = node => {
      if (node.nodeType === 3 && node.data.trim()) {
        const range = page.createRange();
        range.selectNode(node);
        const box = range.getBoundingClientRect();
        if (box.width && box.bottom > 0 && box.top < 1800) seen.push(node.data.trim());
      }
      for (const child of [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes]) walk(child);
    };
    walk(page.body);
    return seen.join("|").replaceAll("|/", "/");
  });
  document.body.textContent = tabs.join("\\n");
}, 15000)</script>"""


@pytest.fixture(scope="module")
def served(finished):
    """served(words): the address of a TensorBoard that has read the runs of a command."""

    @functools.cache
    def start(words: str) -> str:
        folder = finished(words)[0]
        server, runs = program.TensorBoard(), len(list(folder.glob("**/result.json")))
        server.configure([None, "--port", "0", "--logdir", str(folder)])  # 0: it chooses one
        address, deadline = server.launch(), time.time() + 60
        while time.time() < deadline and len(asked(address, "hparams/session_groups")) < runs:
            time.sleep(0.1)
        return address

    return start


def asked(address: str, what: str):
    """What TensorBoard's own pages ask for."""
    allowed = {"allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 100}
    body = json.dumps(allowed if what.endswith("groups") else {}).encode()
    request = urllib.request.Request(f"{address}data/plugin/{what}", body)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request if "hparams" in what else request.full_url) as answer:
        found = json.load(answer)
    return found["sessionGroups"] if what.endswith("groups") else found


FIRST = [  # a command, and the five hyperparameters that are seen
    ("--epochs 3", "lambda_f lambda_r loss lr seed"),
    (
        f"{EVERY_OPTION} --epochs 3 --weighting fixed mgda --lambda-f 0.9 0.5 --lambda-r 0.1 0.5 "
        "--validation 0.1 --select --log-gradients",
        "lambda_f lambda_r weighting loss lr",  # those that differ come first
    ),
]


@pytest.mark.parametrize("words, first", FIRST)
def test_tensorboard_is_served_the_five_curves_and_what_differs_first(served, words, first):
    address = served(words)
    for tags in asked(address, "scalars/tags").values():
        groups = sorted({tag.split("/")[0] for tag in tags})[:2]  # which it opens
        assert "|".join(tag for tag in sorted(tags) if tag.split("/")[0] in groups) == CURVES
    told = asked(address, "hparams/experiment")
    assert [info["name"] for info in told["hparamInfos"]][:5] == first.split()


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs Chromium")
def test_a_browser_shows_the_five_curves_and_what_differs_first(served, tmp_path):
    words, first = FIRST[-1]
    (tmp_path / "page.html").write_text(PAGE.replace("ADDRESS", served(words)))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    pages = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    command = [next(filter(None, map(shutil.which, BROWSERS)))]
    command += "--headless --no-sandbox --disable-gpu --disable-web-security --dump-dom".split()
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'browser'}"]
    command += [f"http://localhost:{pages.server_port}/page.html"]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    pages.shutdown()
    pages.server_close()
    curves, hyperparameters = page.split("\n")[:2]
    places = [curves.find(f"|{curve}|") for curve in CURVES.split("|")]
    assert -1 not in places and places == sorted(places), page
    columns = hyperparameters.partition("Show Metrics|")[2]
    assert columns.startswith(f"{first.replace(' ', '|')}|eval/MSE|eval/Mean Reciprocal Rank|")
