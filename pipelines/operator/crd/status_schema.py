"""What the operator writes into an object's status, as a structural schema."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

PHASES = ("Pending", "Suspended", "Running", "Succeeded", "Failed", "Refused", "Ending")


def text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def time(description: str) -> Schema:
    return text(description, format="date-time")


def whole(description: str) -> Schema:
    return {"type": "integer", "format": "int64", "description": description}


def number(description: str) -> Schema:
    return {"type": "number", "description": description}


def thing(description: str, required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    made = {"type": "object", "description": description, "properties": properties}
    return made | ({"required": list(required)} if required else {})


def listed(description: str, key: str, items: Schema) -> Schema:
    return {
        "type": "array",
        "description": description,
        "items": items,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
    }


OBSERVED = whole("The generation of the object that this status is of.")


def conditions(types: str) -> Schema:
    """metav1.Condition, with its bounds."""
    condition = thing(
        "One aspect of the object's state.",
        ("type", "status", "lastTransitionTime", "reason", "message"),
        type=text(f"{types}.", maxLength=316, pattern=r"^[A-Z][A-Za-z0-9]*$"),
        status=text("True, False or Unknown.", enum=["True", "False", "Unknown"]),
        reason=text(
            "Why, in one word.", minLength=1, maxLength=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
        ),
        message=text("Why, for a person.", maxLength=32768),
        lastTransitionTime=time("When the status last changed."),
        observedGeneration=whole("The generation of the object that this condition is of."),
    )
    return listed("Aspects of the object's state.", "type", condition)


STAGE = thing(
    "A stage of the run.",
    ("name",),
    name=text("The stage, and what it works for: caption:blip2."),
    state=text("What status.json says: waiting, running, done, failed or stopped."),
    done=whole("How many of the total are done."),
    total=whole("Of shards or tasks, as unit says."),
    unit=text("What is counted: shards or tasks."),
    samples=whole("Samples worked through."),
    samplesPerSecond=number("Of all its pods together."),
    seconds=number("How long it took, so far."),
    failures={
        "type": "object",
        "description": "Samples that could not be used, by reason; the most frequent ones.",
        "additionalProperties": {"type": "integer", "format": "int64"},
    },
)

RECAPTION = thing(
    "What the operator observed.",
    phase=text("In one word.", enum=list(PHASES)),
    observedGeneration=OBSERVED,
    conditions=conditions("Accepted, Running, Suspended, Complete, Failed or Reachable"),
    stage=text("The stage that works now."),
    progress=text("Of that stage, such as 120/800 shards."),
    rate=text("Of that stage, such as 75.2/s."),
    stages=listed("Every stage that has begun.", "name", STAGE),
    run=text("URI of the run: <storage>/runs/<run>."),
    kfp=thing(
        "The Kubeflow run that executes it.",
        hash=text("Of what is computed."),
        compute=text("Hash of how it is computed."),
        name=text("Of the KFP run."),
        runId=text("KFP's id of it."),
        state=text("What KFP says of it."),
        link=text("Where KFP's UI shows it, if the operator is told the UI's address."),
        refused={
            "type": "boolean",
            "description": "It can't go on: KFP could not resume it, or what the object asks for was changed.",
        },
    ),
    attempts=whole("How many KFP runs were made of this object."),
    restarts=whole("How many times in a row the operator has started the run anew after bad luck."),
    restartTime=time("When the operator starts the run anew."),
    retried=text("The value of the annotation recaption.dev/retry that was acted upon."),
    startTime=time("When the KFP run was created."),
    completionTime=time("When it came to its end, good or bad."),
    report=text("URI of the report."),
    datasets=listed(
        "The training sets.",
        "mixture",
        thing(
            "A training set.",
            ("mixture",),
            mixture=text("Its name."),
            uri=text("Where its tars lie."),
            pairs=whole("How many image-text pairs it has."),
        ),
    ),
    best=thing(
        "The mixture with the best result.",
        mixture=text("Its name."),
        metric=text("By which number."),
        value=number("That number."),
    ),
    bestResult=text("The best mixture and its number, in short."),
    cleaned={"type": "boolean", "description": "Whether what the KFP run left in the cluster is deleted."},
)

SCHEDULE = thing(
    "What the operator observed.",
    observedGeneration=OBSERVED,
    conditions=conditions("Accepted, DumpsListed or Scheduled"),
    lastScheduleTime=time("The last time of the schedule that something came of."),
    nextScheduleTime=time("The next time of the schedule."),
    lastDump=text("The dump whose Recaption was made last."),
    pending=text("The dump whose Recaption is being made."),
    behind=whole("How many of the dumps that are wanted are not done."),
    active={
        "type": "array",
        "description": "Names of the Recaptions that are not finished.",
        "items": {"type": "string"},
        "x-kubernetes-list-type": "set",
    },
)
