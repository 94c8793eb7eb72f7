{{- /* What the operator may do where it serves jobs.  docs/operations.md has the same table; a test compares them. */ -}}
{{- define "deepseek.rules" -}}
- apiGroups: [training.dstj.io]
  resources: [deepseektrainingjobs]
  verbs: [get, list, watch, delete]
- apiGroups: [training.dstj.io]
  resources: [deepseektrainingjobs/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [serviceaccounts, services, persistentvolumeclaims]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [resourcequotas, limitranges]
  verbs: [list]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end -}}

{{- define "deepseek.subject" -}}
- kind: ServiceAccount
  name: {{ include "deepseek.serviceAccount" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end -}}
