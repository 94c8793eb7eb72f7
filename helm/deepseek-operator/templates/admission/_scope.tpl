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
