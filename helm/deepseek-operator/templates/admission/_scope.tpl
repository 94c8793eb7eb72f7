{{- /*
Fails where another release serves a namespace of this one: two operators would act on the same jobs.  Only Helm and
Flux ask the cluster; Argo CD and `helm template` do not.
*/ -}}
{{- define "deepseek.alone" -}}
{{- $root := . -}}
{{- range (lookup "admissionregistration.k8s.io/v1" "ValidatingAdmissionPolicyBinding" "" "" | dig "items" list) }}
{{- $labels := .metadata.labels | default dict }}
{{- $other := index $labels "app.kubernetes.io/instance" }}
{{- if and (eq (index $labels "app.kubernetes.io/name" | default "") $root.Chart.Name) (ne $other $root.Release.Name) }}
{{- $theirs := list }}
{{- range dig "spec" "matchResources" "namespaceSelector" "matchExpressions" list . }}{{ $theirs = .values }}{{ end }}
{{- $shared := list }}
{{- range $root.Values.watchNamespaces }}{{ if has . $theirs }}{{ $shared = append $shared . }}{{ end }}{{ end }}
{{- if or $shared (not $theirs) (not $root.Values.watchNamespaces) }}
{{- fail (printf "release %s serves %s already, and two operators would act on the same jobs: give both releases watchNamespaces that do not overlap, or uninstall one" $other ($shared | default $theirs | join ", " | default "all namespaces")) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Two releases guard their own namespaces each; a release for all namespaces guards all. */ -}}
{{- define "deepseek.guarded" -}}
validationActions: [Deny]
{{- with .Values.watchNamespaces }}
matchResources:
  namespaceSelector:
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values: {{ toJson . }}
{{- end }}
{{- end -}}
