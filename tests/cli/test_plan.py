"""`ckworkflow plan`: what a workflow will do, told without doing it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ckworkflow.drawing.stages import in_words
from ckworkflow.model import NodeId
from ckworkflow.plan import Chain, Chord, Group, Task
from cli_project import line_of

if TYPE_CHECKING:
    from cli_project import Project

pytestmark = pytest.mark.slow

AWAITED, TESTED = line_of("verified = await"), line_of("if verified")
LOOKS = f"line {TESTED}: `if verified` looks at the result of verify_member (awaited on line {AWAITED})"


def test_plan_prints_steps_sleeps_and_the_celery_canvas(project: Project) -> None:
    at = line_of("async def greeting")

    said = project.command("plan", "greeting", "42")

    assert said.splitlines()[:13] == [
        f"greeting('42')  workflows.flows.greeting (workflows/flows.py:{at - 1})",
        f"├─ greet('42')              0:1, line {at + 1}",
        f"├─ sleep 5 seconds          0:2, line {at + 2}",
        f"├─ greet('42', again=True)  0:3, line {at + 3}",
        "└─ returns {'success': True}",
        "",
        "Celery canvas (RUN stands for the run's id):",
        "  at the start:",
        "    greet, then greet",
        "      workflows.flows.greet('RUN', '0:1', 0) | greet('RUN', '0:3', 0)",
        "        0:3 with a countdown of 5 seconds",
        "",
        "No boundary: all of it is planned at the start.",
    ]


def test_a_boundary_is_told_with_its_line_and_the_reason(project: Project) -> None:
    said = project.command("plan", "branching", "42")

    assert f"└─ stops at {LOOKS}" in said
    boundaries = said[said.index("Boundaries") :]
    assert LOOKS in boundaries
    assert f"line {line_of('log.info')}: it calls `log.info`" in boundaries


def test_json_tells_the_same_to_programs(project: Project) -> None:
    plan = project.data("plan", "branching", "42")

    assert plan["workflow"] == "workflows.flows.branching"
    assert [(node["node_id"], node["name"], node["line"]) for node in plan["nodes"]] == [
        ("0:1", "workflows.flows.verify_member", AWAITED)
    ]
    (stop,) = plan["stops"]
    assert (stop["line"], stop["waits_for"]) == (AWAITED, ["0:1"])
    assert stop["why"] == LOOKS
    kinds = [(b["kind"], b["line"]) for b in plan["boundaries"] if not b["is_conditional"]]
    assert kinds == [("await", AWAITED), ("fence", line_of("log.info"))]
    assert plan["end"] is None


def test_what_follows_a_gather_is_the_body_of_a_chord(project: Project) -> None:
    said = project.command("plan", "together", "42")

    assert "├─ side by side\n│  ├─ verify_member('42')" in said
    assert (
        "    %workflows.flows.greet([verify_member('RUN', '0.1:1', 0), "
        "verify_member('RUN', '0.2:1', 0)], 'RUN', '0:1', 0)\n"
    ) in said


def test_a_sleep_beyond_the_horizon_ends_a_canvas(project: Project) -> None:
    plan = project.data("plan", "parallel", "42")

    group, last = plan["tree"]
    assert last["text"] == "greet(<0.1:1>, <0.2:3>)"
    assert group["kind"] == "group"
    assert [[item["text"] for item in branch] for branch in group["branches"]] == [
        ["verify_member('42')"],
        ["verify_member('42')", "sleep 7 days", "greet(<0.2:1>)"],
    ]
    at_start, later, last = plan["canvas"]
    assert at_start["after"] == []
    assert sorted(piece["text"] for piece in at_start["pieces"]) == [
        "workflows.flows.verify_member('RUN', '0.1:1', 0)",
        "workflows.flows.verify_member('RUN', '0.2:1', 0)",
    ]
    assert later["after"] == ["0.2:2"]
    assert [piece["text"] for piece in later["pieces"]] == ["workflows.flows.greet('RUN', '0.2:3', 0)"]
    assert last["after"] == ["0.1:1", "0.2:3"]
    assert [piece["text"] for piece in last["pieces"]] == ["workflows.flows.greet('RUN', '0:1', 0)"]


def test_the_boundaries_of_an_inlined_workflow_are_told_with_its_name(project: Project) -> None:
    said = project.command("plan", "outer", "42")

    assert f"stops at {LOOKS}" in said
    assert f"  in workflows.flows.branching (workflows/flows.py):\n    {LOOKS}\n" in said


def test_an_endless_workflow_is_shown_up_to_the_end_of_its_first_segment(project: Project) -> None:
    at = line_of('sleep("1h")')

    said = project.command("plan", "forever")

    assert "more; --json shows all" in said
    assert f"stops at line {at}: a segment ends after" in said
    assert "No boundary" not in said
    assert len(said.splitlines()) < 100


def test_a_body_that_cannot_be_rewritten_is_told_with_the_reason(project: Project) -> None:
    said = project.command("plan", "peeking", "42")

    assert f"every await: `locals` on line {line_of('locals()')} can look at the body itself" in said


def test_a_body_that_raises_at_once_is_shown_as_that(project: Project) -> None:
    said = project.command("plan", "breaks")

    assert "└─ raises FatalError: it is broken" in said
    assert "nothing: no step runs" in said


def test_a_body_that_awaits_the_network_is_one_sentence(project: Project) -> None:
    assert "Move it into a @step" in project.error("plan", "networking")


def test_plan_needs_neither_database_nor_broker_and_leaves_no_file(project: Project) -> None:
    project.configure(
        broker_url="redis://127.0.0.1:1/0",
        workflow_database_url="postgresql+psycopg://nobody@127.0.0.1:1/none",
    )
    assert "greet('42')" in project.command("plan", "greeting", "42")
    project.configure()
    project.command("plan", "greeting", "42")

    names = {path.name for path in project.folder.iterdir()} - {"__pycache__"}
    assert names == {"celeryconfig.py", "workflows"}


# -- names and arguments ------------------------------------------------------------------------------


def test_the_full_name_will_do_as_well(project: Project) -> None:
    assert project.data("plan", "workflows.flows.greeting", "42")["input"]["args"] == ["42"]


def test_a_last_part_that_two_workflows_have_is_refused_with_both(project: Project) -> None:
    project.write(
        "workflows/more.py",
        """
        from ckworkflow import workflow
        @workflow
        async def greeting(): ...
        """,
    )

    said = project.error("plan", "greeting")

    assert "workflows.flows.greeting, workflows.more.greeting" in said


def test_a_misspelt_name_is_answered_with_the_near_one(project: Project) -> None:
    assert "Did you mean: workflows.flows.greeting?" in project.error("plan", "greting")


def test_no_workflow_packages_at_all_is_told(project: Project) -> None:
    project.configure(workflow_packages=[])
    assert "workflow_packages = ['workflows']" in project.error("plan", "greeting")


def test_a_module_that_cannot_be_imported_is_told_and_the_others_are_planned(project: Project) -> None:
    project.write("workflows/bad/broken.py", "import os\nimport nothing_here\n")

    done = project.run("ckworkflow", "plan", "greeting", "42")

    assert done.returncode == 0
    assert re.search(
        r"^Warning: Module workflows\.bad\.broken \(.*broken\.py:2\) cannot be imported: ", done.stderr
    )
    assert len(done.stderr.splitlines()) == 1


def test_missing_arguments_are_told_with_the_parameters(project: Project) -> None:
    said = project.error("plan", "greeting")

    assert said == (
        "greeting() missing a required argument: 'user_id'. Its parameters are (user_id: str)."
    )


def test_arguments_are_json_or_text_and_named_ones_have_an_equals_sign(project: Project) -> None:
    words = ["1", "-2", "name=7", "note=null", 'extra={"a": [true]}', "other=a=b"]

    found = project.data("plan", "keywords", "--", *words)["input"]

    assert found == {
        "args": [1, -2],
        "kwargs": {"name": "7", "note": None, "extra": {"a": [True]}, "other": "a=b"},
    }


@pytest.mark.parametrize("text", ["[" * 1000, '{"a":' * 5000])
def test_an_argument_that_is_nested_too_deep_is_one_sentence(project: Project, text: str) -> None:
    done = project.run("ckworkflow", "plan", "greeting", text)

    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "is nested too deep to be read as JSON" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- mermaid --------------------------------------------------------------------------------------------

NODE = r'\w+(\["[^"]*"\]|\(\["[^"]*"\]\)|\("[^"]*"\)|\(\("[^"]*"\)\)|\{\{"[^"]*"\}\})'
EDGE = r"\w+ --> \w+"


@pytest.mark.parametrize(
    "words", [["branching", "42"], ["parallel", "42"], ["breaks"], ["returns", '"]}<b>`#;']]
)
def test_mermaid_is_a_flowchart_whose_edges_join_nodes_that_it_has(
    project: Project, words: list[str]
) -> None:
    first, *lines = project.command("plan", *words, "--mermaid").splitlines()

    assert first == "flowchart TD"
    nodes = {
        line.split("[")[0].split("(")[0].split("{")[0].strip() for line in lines if "-->" not in line
    }
    for line in lines:
        assert re.fullmatch(rf"    ({NODE}|{EDGE})", line), line
        assert not re.search(r"[`<]|&", line), line
        if "-->" in line:
            assert set(line.split(" --> ")[0].split()) | {line.split(" --> ")[1]} <= nodes


def test_mermaid_shows_the_stop_and_its_reason(project: Project) -> None:
    said = project.command("plan", "branching", "42", "--mermaid")

    assert 'n1["verify_member"]' in said
    assert "n1 --> stop1" in said
    assert f'stop1{{{{"line {TESTED}: #96;if verified#96; looks at the result of verify_member' in said


# -- whose app --------------------------------------------------------------------------------------------


def test_celery_has_the_same_commands(project: Project) -> None:
    done = project.run("celery", "-A", "ckworkflow", "workflow", "plan", "greeting", "42")

    assert done.returncode == 0, done.stderr
    assert done.stdout == project.command("plan", "greeting", "42")


def test_celery_tells_a_named_error_in_one_sentence(project: Project) -> None:
    project.command("db", "upgrade")

    done = project.run("celery", "-A", "ckworkflow", "workflow", "runs", "show", "nothing")

    assert done.returncode == 1
    assert done.stderr.startswith("Error: No run has the id 'nothing'")
    assert "Traceback" not in done.stderr


APP = """
from celery import Celery
from ckworkflow import WorkflowPlugin

app = Celery("shop", broker="memory://")
app.conf.workflow_packages = ["workflows"]
{plugin}
"""


@pytest.mark.parametrize("name", ["shop", "shop:app"])
def test_an_app_of_the_users_own_is_named_with_a(project: Project, name: str) -> None:
    project.configure(workflow_packages=[])
    project.write("shop.py", APP.format(plugin="WorkflowPlugin(app)"))

    assert "greet('42')" in project.command("--app", name, "plan", "greeting", "42")
    done = project.run("celery", "-A", name, "workflow", "plan", "greeting", "42")
    assert "greet('42')" in done.stdout, done.stderr


def test_an_app_without_the_plugin_is_told_how_to_get_it(project: Project) -> None:
    project.write("shop.py", APP.format(plugin=""))

    assert "Write WorkflowPlugin(app)" in project.error("-A", "shop", "plan", "greeting", "42")


def test_an_app_that_cannot_be_loaded_is_told_with_the_reason(project: Project) -> None:
    said = project.error("-A", "nowhere", "runs", "list")

    assert "The Celery app 'nowhere' cannot be loaded: ModuleNotFoundError" in said


def test_a_chord_is_said_in_words() -> None:
    setup = [Chain((Task(NodeId(f"0.{n}:1"), f"flows.part_{n}", 1),)) for n in (1, 2, 3)]
    welcome = Chain((Task(NodeId("0:1"), "flows.send_welcome_message", 1),))

    assert in_words(Chord(tuple(setup), welcome)) == "chord of 3, then send_welcome_message"
    assert (
        in_words(Chain((*welcome.items, Group(tuple(setup))))) == "send_welcome_message, then group of 3"
    )


def test_a_body_that_computes_without_an_end_is_told_with_its_place(project: Project) -> None:
    project.write(
        "workflows/endless.py",
        """
        from ckworkflow import workflow

        @workflow
        async def endless() -> None:
            while True:
                pass
        """,
    )

    done = project.run("ckworkflow", "plan", "endless")

    assert done.returncode == 1
    # The second where the machine has hardly had time for it.
    assert re.search(
        r"(computed for 2 s without awaiting|did not return for 10 s).*, last in ", done.stderr
    )
    assert "endless.py, line" in done.stderr
    assert "Traceback" not in done.stderr
