"""Drawing: what a workflow will do, found out without doing it, as text, data or a Mermaid flowchart."""
