"""The admission policy: the checks of a recipe for which the CRD's rules are blind or too dear.

CEL in a policy sees values without a structural type, and its cost is counted, not estimated. A recipe that is too
large even so is admitted, and refused by the operator at once, with the CLI's words.

Each check is a variable: every mistake with its path, in the CLI's words, a `; ` after each; empty where there is none.
"""

from __future__ import annotations

from typing import Any

from components.recipe.training import ScaleConfig

Object = dict[str, Any]

NAME = "recaption"
SINCE = "1.33"  # the Kubernetes whose CEL has comprehensions with an index
SCALE = [field.alias or name for name, field in ScaleConfig.model_fields.items()]


def each_rule(body: str) -> str:
    """The text that `body` says of each rule, with `m`, `mixture`, `r` and `rule`."""
    return (
        "variables.mixtures.transformList(m, mixture, mixture.rules.transformList(r, rule,\n"
        f"{_indented(body)}\n).join('')).join('')"
    )


def each_condition(body: str) -> str:
    """The text that `body` says of each condition, with `c` and `condition` besides."""
    return each_rule(f"rule.?where.orValue([]).transformList(c, condition,\n{_indented(body)}\n).join('')")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


RULE = "variables.at + '.mixtures[' + string(m) + '].rules[' + string(r) + ']"
CONDITION = RULE + ".where[' + string(c) + ']"
TEXTS = """type(rule.text) == string ? [rule.text]
: type(rule.text) == map ? rule.text.?concat.orValue(rule.text.?bestOf.orValue([]))
: []"""
TOP = "rule.?where.orValue([]).exists(k, has(k.top))"

VALUES = {  # what the checks look at
    "spec": "has(dyn(object).spec.template) ? dyn(object).spec.template.spec : dyn(object).spec",
    "at": "has(dyn(object).spec.template) ? 'spec.template.spec' : 'spec'",
    "mixtures": "variables.spec.?mixtures.orValue([])",
    "columns": "variables.spec.?columns.orValue([])",
    "texts": (
        "['raw'] + variables.spec.?captioners.orValue([]).map(c, string(c.name))\n"
        "+ variables.columns.filter(c, c.kind == 'text').map(c, string(c.name))"
    ),
    "scores": (
        "variables.texts + variables.columns.filter(c, c.kind == 'score').map(c, string(c.name))\n"
        "+ variables.spec.?screens.orValue([]).map(s, string(s.name))"
    ),
    "flags": (
        "variables.columns.filter(c, c.kind == 'flag').map(c, string(c.name))\n"
        "+ variables.spec.?filters.orValue([]).map(f, string(f.name))"
    ),
    "scale": "variables.spec.?train.?scale.orValue('small')",
    "tasks": "variables.spec.?evaluate.?tasks.orValue('datacomp')",
}

CHECKS = {
    "textShapes": each_rule(
        f"""type(rule.text) == string ? ''
: type(rule.text) != map || !('concat' in rule.text || 'bestOf' in rule.text)
? {RULE}.text: expected a text, {{concat: [A, B]}} or {{bestOf: [A, B]}}; '
: rule.text.filter(k, k != ('concat' in rule.text ? 'concat' : 'bestOf'))
.map(k, {RULE}.text.' + k + ': unknown key; allowed are '
  + ('concat' in rule.text ? 'concat' : 'bestOf') + '; ').join('')"""
    ),
    "conditionShapes": each_condition(
        f"""(has(condition.flag)
|| [has(condition.top), has(condition.atLeast), has(condition.atMost)].exists_one(x, x) ? ''
: {CONDITION}: give exactly one of `top`, `atLeast` and `atMost`; ')
+ (!has(condition.atLeast) ? ''
: has(condition.flag) ? {CONDITION}.atLeast: unknown key; allowed are flag, equals; '
: type(condition.atLeast) == int || type(condition.atLeast) == double ? ''
: type(condition.atLeast) != map ? {CONDITION}.atLeast: expected a number or {{rule: NAME}}; '
: condition.atLeast.filter(k, k != 'rule')
.map(k, {CONDITION}.atLeast.' + k + ': unknown key; allowed are rule; ').join(''))"""
    ),
    "otherShapes": f"""(type(variables.scale) == string ? ''
: type(variables.scale) == map
? variables.scale.transformList(k, v, !(k in {SCALE}),
  variables.at + '.train.scale.' + k + ': unknown key; allowed are {", ".join(SCALE)}; ').join('')
: variables.at + '.train.scale: expected a scale\\'s name or {{model: …, batchSize: …, …}}; ')
+ (type(variables.tasks) == string || type(variables.tasks) == list ? ''
: variables.at + '.evaluate.tasks: expected datacomp or a list of names; ')""",
    "unknownTexts": each_rule(
        f"""({TEXTS}).filter(t, !(t in variables.texts))
.map(t, {RULE}.text: ' + t + ' is no text; there is ' + variables.texts.join(', ') + '; ').join('')"""
    ),
    "unknownScores": each_condition(
        f"""!has(condition.score) || condition.score in variables.scores ? ''
: {CONDITION}.score: ' + condition.score + ' is no score; there is ' + variables.scores.join(', ') + '; '"""
    ),
    "unknownFlags": each_condition(
        f"""!has(condition.flag) || condition.flag in variables.flags ? ''
: {CONDITION}.flag: ' + condition.flag + ' is no flag; there is '
+ (variables.flags == [] ? 'none' : variables.flags.join(', ')) + '; '"""
    ),
    "unknownThresholds": each_condition(
        f"""!has(condition.atLeast) || type(condition.atLeast) != map || !has(condition.atLeast.rule)
|| mixture.rules.exists(rule, has(rule.name) && rule.name == condition.atLeast.rule && {TOP}) ? ''
: {CONDITION}.atLeast.rule: ' + condition.atLeast.rule + ' is no rule with a `top` condition; there is '
+ mixture.rules.filter(rule, has(rule.name) && {TOP}).map(rule, string(rule.name)).join(', ') + '; '"""
    ),
    "sameNames": each_rule(
        f"""!has(rule.name) || mixture.rules.exists_one(o, has(o.name) && o.name == rule.name) ? ''
: {RULE}.name: ' + rule.name + ' is taken; every name must be used once; '"""
    ),
}
FALLBACK = "the recipe has mistakes, too many to tell; `recaption validate` lists them"


def policy() -> Object:
    variables = {**VALUES, **CHECKS}
    validations = [
        {
            "expression": f"variables.{name} == ''",
            "message": FALLBACK,
            "messageExpression": f"variables.{name}.substring(0, size(variables.{name}) - 2)",
            "reason": "Invalid",
        }
        for name in CHECKS
    ]
    resources = {
        "apiGroups": ["recaption.dev"],
        "apiVersions": ["v1alpha1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["recaptions", "recaptionschedules"],
        "scope": "*",
    }
    # What was admitted before goes on to be: a label, a finalizer or an owner may always change.
    changed = "request.operation == 'CREATE' || object.spec != oldObject.spec"
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": NAME},
        "spec": {
            "failurePolicy": "Ignore",
            "matchConstraints": {"resourceRules": [resources]},
            "matchConditions": [{"name": "spec-changed", "expression": changed}],
            "variables": [{"name": name, "expression": expression} for name, expression in variables.items()],
            "validations": validations,
        },
    }


def binding() -> Object:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": NAME},
        "spec": {"policyName": NAME, "validationActions": ["Deny"]},
    }
