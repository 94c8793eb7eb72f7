"""What the controller and the kinds talk about, as plain values.

`observed` has keys of objects and references to them, `plan` what a pass is to do, `kind` what makes a kind.  `pods`,
`quota` and `blockers` read the manifests of Kubernetes' own objects.  Everything here is pure.
"""
