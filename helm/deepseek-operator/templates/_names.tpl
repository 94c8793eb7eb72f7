{{- define "deepseek.name" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "deepseek.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "deepseek.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "deepseek.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "deepseek.name" .) }}
{{- else -}}
{{ required "serviceAccount.name is empty and serviceAccount.create is false: name the ServiceAccount to use" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "deepseek.image" -}}
{{- $repository := required "image.repository is empty: build operator/Dockerfile, push it to your registry and name it, see docs/installation.md" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Whether objects of an optional API are wanted: (list $ "auto" "monitoring.coreos.com/v1/PodMonitor"). */ -}}
{{- define "deepseek.wanted" -}}
{{- $root := index . 0 -}}
{{- if or (eq (index . 1) "always") (and (eq (index . 1) "auto") ($root.Capabilities.APIVersions.Has (index . 2))) -}}
yes
{{- end -}}
{{- end -}}

{{- define "deepseek.podSecurity" -}}
runAsNonRoot: true
{{- if eq .Values.security.userFrom "Fixed" }}
runAsUser: 10001
runAsGroup: 10001
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "deepseek.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* The named ports, and those that the API server of this cluster has.  `helm template` knows no cluster. */ -}}
{{- define "deepseek.apiServerPorts" -}}
{{- $behind := lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "kubernetes" | dig "ports" list }}
{{- $before := lookup "v1" "Service" "default" "kubernetes" | dig "spec" "ports" list }}
{{- $ports := list }}
{{- range .Values.networkPolicy.apiServerPorts }}{{ $ports = append $ports (int .) }}{{ end }}
{{- range concat $before $behind }}{{ $ports = append $ports (int .port) }}{{ end }}
{{- $ports | uniq | toJson -}}
{{- end -}}
