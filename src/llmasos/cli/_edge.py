"""``llmasos-edge``: answers of an exported model, and its proof, with nothing but the standard library to parse words.

This is the whole command line of the small distribution; ``llmasos predict`` and ``verify`` open the same folders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import LLMasOSError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit code: 0 done, 1 not the same model, 2 wrong input, 130 Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except LLMasOSError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(prog="llmasos-edge", description="Run an exported model, without torch.")
    parser.add_argument("--version", action="version", version=f"llmasos-edge {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    predict = verbs.add_parser("predict", help="answer texts; from standard input, one a line, if there are none")
    predict.add_argument("model", metavar="DIR", help="folder of an export")
    predict.add_argument("texts", metavar="TEXT", nargs="*", help="texts to answer")
    predict.add_argument("--data", metavar="FILE", help="a file of rows instead")
    predict.add_argument("--batch-size", type=int, default=64, help="texts computed at once")
    predict.add_argument("--max-length", type=int, help="longest text in tokens; the model's limit if not given")
    predict.add_argument("--threads", type=int, help="processor threads; one a core if not given")
    predict.set_defaults(run=_predict)
    serve = verbs.add_parser("serve", help="answer over HTTP: POST /v1/predict, as llmasos serve does")
    serve.add_argument("model", metavar="[NAME=]DIR", help="folder of an export, and what clients call it")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond this machine only with keys")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for a free one")
    serve.add_argument("--threads", type=int, help="processor threads; one a core if not given")
    serve.add_argument("--drain", type=float, default=45.0, help="seconds that requests have to end at SIGTERM")
    serve.set_defaults(run=_serve)
    verify = verbs.add_parser("verify", help="check that every file and the golden rows are as they were")
    verify.add_argument("model", metavar="DIR", help="folder of an export")
    verify.add_argument("--threads", type=int, help="processor threads; one a core if not given")
    verify.set_defaults(run=_verify)
    return parser


def _predict(options: argparse.Namespace) -> int:
    from ..edge import Model

    if options.data and options.texts:
        raise UsageError("texts and --data are both given", hint="pass one of them")
    model = Model.open(options.model, threads=options.threads)
    source: Any = Path(options.data) if options.data else iter(options.texts or _lines())
    for answer in model.predict(source, batch_size=options.batch_size, max_length=options.max_length):
        print(json.dumps(answer.as_dict(), ensure_ascii=False))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from ..edge import Model
    from ..hosting import Host

    name, equals, folder = options.model.partition("=")
    if not equals:
        folder, name = options.model, Path(options.model).resolve().name
    model = Model.open(folder, threads=options.threads)
    host = Host(model, name, options.host, options.port, drain=options.drain)
    host.run(lambda url: print(f"{name}: {model.engine.how}, {url}/v1/predict", flush=True))
    return 0


def _lines() -> Iterable[str]:
    return (line.rstrip("\r\n") for line in sys.stdin)


def _verify(options: argparse.Namespace) -> int:
    from ..edge import Model

    model = Model.open(options.model, threads=options.threads)
    found = model.verify()
    apart = f"{found.largest:.2g} apart, {found.relative:.2%} of the largest"
    print(f"{options.model}: {model.engine.how}; golden rows {apart}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
