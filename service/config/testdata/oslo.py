"""Reads a list of configurations as JSON from stdin, loads each with oslo.config, and writes for each
the value of each option, or the error, as JSON to stdout."""
import json
import logging
import os
import sys

from oslo_config import cfg

logging.disable(logging.CRITICAL)


def read(case):
    conf = cfg.ConfigOpts()
    conf.register_cli_opts([cfg.StrOpt("word", default="w")])
    conf.register_opts([
        cfg.StrOpt("text", default="d"),
        cfg.IntOpt("num", default=4, min=0, max=100),
        cfg.FloatOpt("ratio", default=1.5, min=-2.5),
        cfg.BoolOpt("flag", default=False),
        cfg.ListOpt("items", default=["x", "y"]),
        cfg.DictOpt("pairs", default={}),
        cfg.StrOpt("kind", default="a", choices=["a", "b"]),
        cfg.StrOpt("shape", default="z", regex="^[a-z]+$"),
        cfg.MultiStrOpt("many", default=[]),
    ])
    conf.register_opts([
        cfg.StrOpt("connection", default="", deprecated_opts=[cfg.DeprecatedOpt("sql_connection", group="DEFAULT")]),
        cfg.IntOpt("pool", default=5, deprecated_name="max_pool"),
    ], group="database")
    os.environ.clear()
    os.environ.update(case["env"])
    conf(case["args"], project="none", default_config_files=[], default_config_dirs=[])
    out = {name: conf[name] for name in ("word", "text", "num", "ratio", "flag", "items", "pairs", "kind", "shape", "many")}
    out["connection"], out["pool"] = conf.database.connection, conf.database.pool
    return out


results = []
for case in json.load(sys.stdin):
    try:
        results.append({"options": read(case)})
    except SystemExit as e:  # from the argument parser
        results.append({"error": "exit: %s" % e})
    except Exception as e:  # any exception: the configuration is wrong
        results.append({"error": "%s: %s" % (type(e).__name__, e)})
json.dump(results, sys.stdout)
