{{/* What every object's name begins with; short, so that role, pool and Kubernetes' own suffixes fit behind it. */}}
{{- define "cascadia.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 30 | trimSuffix "-" -}}
{{- end }}

{{/* Labels that select the pods of one node kind and pool; of: {root, component, pool}. */}}
{{- define "cascadia.selector" -}}
app.kubernetes.io/name: {{ .root.Values.nameOverride | default .root.Chart.Name | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .pool }}
cascadia/pool: {{ . | quote }}
{{- end }}
{{- end }}

{{/* All labels of an object; of: {root, component, pool}. */}}
{{- define "cascadia.labels" -}}
{{ include "cascadia.selector" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | regexFind "[A-Za-z0-9._-]+" | trunc 63 | trimAll "._-" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "cascadia.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "cascadia.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "cascadia.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "cascadia.adminSecret" -}}
{{ .Values.admin.existingSecret | default (printf "%s-admin" (include "cascadia.fullname" .)) }}
{{- end }}

{{/* Empty where everyone may ask. */}}
{{- define "cascadia.apiKeysSecret" -}}
{{- with .Values.apiKeys.existingSecret -}}
{{ . }}
{{- else -}}
{{ with .Values.apiKeys.keys }}{{ include "cascadia.fullname" $ }}-api-keys{{ end }}
{{- end -}}
{{- end }}

{{- define "cascadia.etcdEndpoints" -}}
{{- if .Values.etcd.enabled -}}
http://{{ include "cascadia.fullname" . }}-etcd:2379
{{- else -}}
{{ join "," .Values.etcd.external.endpoints }}
{{- end -}}
{{- end }}

{{/* What the restricted pod security standard asks of a pod. */}}
{{- define "cascadia.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* And of a container. */}}
{{- define "cascadia.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "cascadia.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}
