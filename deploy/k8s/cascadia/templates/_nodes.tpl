{{/*
What was typed, resolved once into what is meant: one entry for the router and one for each pool, as YAML.
A pool is its role's defaults with what its own entry says on top.
*/}}
{{- define "cascadia.nodes" -}}
{{- $full := include "cascadia.fullname" . -}}
{{- $none := dict "download" (dict "repository" "") "modelVolume" (dict "claim" "") "synthetic" "" -}}
{{- $router := list .Values.nodeDefaults .Values.router $none | include "cascadia.merged" | fromYaml -}}
{{- $nodes := list (merge (dict "role" "router" "pool" "" "fullname" (printf "%s-router" $full)) $router) -}}
{{- range $role := list "drafter" "expert" -}}
{{- $defaults := list $.Values.nodeDefaults (get $.Values (printf "%sDefaults" $role)) -}}
{{- range $entry := get $.Values (printf "%ss" $role) -}}
{{- $pool := append $defaults $entry | include "cascadia.merged" | fromYaml -}}
{{- $own := dict "role" $role "pool" $pool.name "fullname" (printf "%s-%s-%s" $full $role $pool.name) -}}
{{- $nodes = append $nodes (merge $own (dict "scripts" (printf "%s-download" $full)) $pool) -}}
{{- end -}}
{{- end -}}
{{- toYaml $nodes -}}
{{- end }}

{{/* Maps, each with the last word over those before it; of: a list of maps. What is empty overrides too. */}}
{{- define "cascadia.merged" -}}
{{- $all := dict -}}
{{- range . -}}
{{- range $key, $value := . -}}
{{- $old := get $all $key -}}
{{- $both := and (kindIs "map" $value) (kindIs "map" $old) -}}
{{- $_ := set $all $key (ternary (mergeOverwrite (deepCopy ($both | ternary $old dict)) (deepCopy ($both | ternary $value dict))) $value $both) -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end }}

{{/* A name that clients can ask for. */}}
{{- define "cascadia.served" -}}
{{- $names := list -}}
{{- range include "cascadia.nodes" . | fromYamlArray -}}
{{- if and (eq .role "expert") (include "cascadia.least" . | int) }}{{ $names = concat $names .served }}{{ end -}}
{{- end -}}
{{- first $names -}}
{{- end }}

{{/* The fewest pods a node kind will have. */}}
{{- define "cascadia.least" -}}
{{- ternary .autoscaling.min .replicas .autoscaling.enabled -}}
{{- end }}

{{/* The folder a pool's model is in. */}}
{{- define "cascadia.model" -}}
{{- if .download.repository -}}
/cache/{{ .download.repository }}/{{ .download.revision }}
{{- else -}}
{{ .model }}
{{- end -}}
{{- end }}

{{/* Seconds a pod has to end: the longest request and 15, as the node takes them, the time before, and a little to leave. A
     router with a long lame duck keeps idle connections for as long again. */}}
{{- define "cascadia.grace" -}}
{{- $grace := add .root.Values.requestSeconds 20 .node.preStopSeconds -}}
{{- if eq .node.role "router" -}}
{{- $lame := int .root.Values.router.lameDuckSeconds -}}
{{- add $grace $lame (max 0 (sub $lame 14)) -}}
{{- else -}}
{{- $grace -}}
{{- end -}}
{{- end }}

{{/* A setting as a flag; of: {key, value}. Flags are what the node reads first, and they stay in the pod's template. */}}
{{- define "cascadia.flag" -}}
{{- $flag := printf "--%s" (.key | replace "_" "-") -}}
{{- if kindIs "bool" .value -}}
{{- if .value }}{{ $flag }}{{ end -}}
{{- else if kindIs "slice" .value -}}
{{ $flag }}={{ join "," .value }}
{{- else if kindIs "string" .value -}}
{{ $flag }}={{ .value }}
{{- else -}}
{{ $flag }}={{ toJson .value }}
{{- end -}}
{{- end }}

{{/* The command line of a node; of: {root, node}. */}}
{{- define "cascadia.args" -}}
{{- $values := .root.Values -}}
{{- $request := int64 $values.requestSeconds -}}
- {{ .node.role }}
- --id=$(POD_NAME)
- --admin=$(POD_IP):9090
- {{ printf "--etcd=%s" (include "cascadia.etcdEndpoints" .root) | quote }}
{{- with $values.etcd.external.tls }}
{{- if .secret }}
- --etcd-ca-file=/etc/cascadia-etcd/ca.crt
{{- end }}
{{- if .clientCertificate }}
- --etcd-cert-file=/etc/cascadia-etcd/tls.crt
- --etcd-key-file=/etc/cascadia-etcd/tls.key
{{- end }}
{{- end }}
- {{ printf "--etcd-prefix=%s" ($values.etcd.prefix | default (printf "/cascadia/%s/%s/" .root.Release.Namespace .root.Release.Name)) | quote }}
- {{ printf "--cluster-name=%s" ($values.clusterName | default (printf "%s/%s" .root.Release.Namespace .root.Release.Name)) | quote }}
- --config=/etc/cascadia/cascadia.toml
{{- if eq .node.role "router" }}
- --listen={{ $values.router.bind }}:50051
- --http={{ $values.router.bind }}:8080
{{- if include "cascadia.apiKeysSecret" .root }}
- --api-key-file=/etc/cascadia-api-keys/keys
{{- end }}
- --lame-duck-ms={{ mul $values.router.lameDuckSeconds 1000 }}
- --max-timeout-ms={{ mul $request 1000 }}
- --default-timeout-ms={{ mul $request 1000 }}
{{- else }}
- --listen=$(POD_IP):50051
{{- with .node.synthetic }}
- {{ printf "--synthetic=%s" . | quote }}
{{- else }}
- {{ printf "--model=%s" (include "cascadia.model" $.node) | quote }}
{{- end }}
{{- with .node.served }}
- {{ printf "--served-model=%s" (join "," .) | quote }}
{{- end }}
- --grace-seconds={{ add $request 15 }}
{{- end }}
{{- with $values.tracing.endpoint }}
- {{ printf "--otlp-endpoint=%s" . | quote }}
- --trace-ratio={{ toJson $values.tracing.ratio }}
{{- end }}
{{- range $key, $value := .node.settings }}
{{- with include "cascadia.flag" (dict "key" $key "value" $value) }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
