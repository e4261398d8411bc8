"""The demo from Python: what `edgekit run` does, with the results as typed objects."""

import edgekit

project = edgekit.Project.load()  # edgekit.toml, here or above
outcome = project.run()  # quantize, then push, probe, select and activate on every target

bundle = outcome.quantized.bundle
for artifact in bundle.manifest.artifacts:
    inspection = artifact.inspection
    share = (inspection.int8_mac_share if inspection else None) or 0.0
    print(f"{artifact.id:50} {artifact.size_bytes / 1e6:6.2f} MB, int8 MACs {share:.0%}")

for deploy in outcome.deploys:
    selection = deploy.selection
    assert selection.chosen is not None, selection.rule
    chosen = selection.candidates[selection.chosen]
    print(f"chosen on {deploy.record.target}: {chosen.artifact_id}, {chosen.threads} thread(s)")
    print(f"accuracy drop there: {chosen.drop:.3f} of {selection.budget.max_drop} allowed")
