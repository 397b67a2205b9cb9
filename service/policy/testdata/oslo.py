"""Reads a list of cases as JSON from stdin, decides each with oslo.policy, and writes for each case
the decision of each rule, or the error, as JSON to stdout."""
import json
import logging
import sys

from oslo_config import cfg
from oslo_policy import opts
from oslo_policy import policy

logging.disable(logging.CRITICAL)


def decide(case):
    conf = cfg.ConfigOpts()
    opts._register(conf)
    conf([], project="none", default_config_files=[], default_config_dirs=[])
    conf.set_override("policy_file", case["file"], "oslo_policy")
    conf.set_override("policy_dirs", [case["dir"]], "oslo_policy")
    enforcer = policy.Enforcer(conf)
    enforcer.suppress_default_change_warnings = True
    for name, check in case["rules"].items():
        enforcer.register_default(policy.RuleDefault(name, check))
    enforcer.load_rules()
    return {name: bool(enforcer.enforce(name, case["target"], dict(case["creds"]))) for name in case["rules"]}


results = []
for case in json.load(sys.stdin):
    try:
        results.append({"allowed": decide(case)})
    except Exception as e:  # any exception: the rules cannot be used
        results.append({"error": "%s: %s" % (type(e).__name__, e)})
json.dump(results, sys.stdout)
