{{/* What the schema cannot say. Each message names the value and what would be right. */}}
{{- define "cascadia.checks" -}}
{{- $nodes := include "cascadia.nodes" . | fromYamlArray -}}
{{- $names := dict -}}
{{- $served := list -}}
{{- $experts := 0 -}}
{{- range $node := $nodes -}}
  {{- $what := printf "%ss[%s]" .role .pool -}}
  {{- if hasKey $names .fullname -}}
    {{- fail (printf "\n%ss: two pools are named %q; give each %s pool a name of its own" .role .pool .role) -}}
  {{- end -}}
  {{- $_ := set $names .fullname true -}}
  {{- if and .autoscaling.enabled (gt (int .autoscaling.min) (int .autoscaling.max)) -}}
    {{- fail (printf "\n%s.autoscaling: min is %d and max is %d; set max to at least min" $what (int .autoscaling.min) (int .autoscaling.max)) -}}
  {{- end -}}
  {{- if ne .role "router" -}}
    {{- if and .download.repository .synthetic -}}
      {{- fail (printf "\n%s: synthetic nodes have no weights to download; remove download or synthetic" $what) -}}
    {{- end -}}
    {{- if and .download.repository .modelVolume.claim -}}
      {{- fail (printf "\n%s: the model comes from download or from modelVolume, not from both; remove one" $what) -}}
    {{- end -}}
  {{- end -}}
  {{- if eq .role "expert" -}}
    {{- if not .served -}}
      {{- fail (printf "\n%s.served is empty; name at least one model, for example [demo]: clients ask for it by this name" $what) -}}
    {{- end -}}
    {{- $served = concat $served .served -}}
    {{- $experts = add $experts (include "cascadia.least" . | int) -}}
  {{- end -}}
{{- end -}}
{{- $routers := include "cascadia.least" (first $nodes) | int -}}
{{- if not $routers -}}
  {{- fail "\nrouter.replicas is 0; set at least 1 (2 for upgrades without a gap): nobody would answer clients" -}}
{{- end -}}
{{- if not $experts -}}
  {{- fail "\nexperts: no pool has a replica; set replicas of at least one to 1 or more: a model is served only where an expert has it" -}}
{{- end -}}
{{- range $node := $nodes -}}
  {{- if eq .role "drafter" -}}
    {{- range .served -}}
      {{- if not (has . $served) -}}
        {{- fail (printf "\ndrafters[%s].served names %q, which no expert pool serves; name one of: %s (or leave served empty: the pool drafts for every model of its tokenizer)" $node.pool . (join ", " (uniq $served))) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and (not .Values.etcd.enabled) (not .Values.etcd.external.endpoints) -}}
  {{- fail "\netcd.external.endpoints is empty and etcd.enabled is false; list the addresses of your etcd, for example [http://etcd.infra:2379], or set etcd.enabled to true" -}}
{{- end -}}
{{- $secure := 0 -}}
{{- range .Values.etcd.external.endpoints -}}
  {{- $secure = add $secure (ternary 1 0 (hasPrefix "https://" .)) -}}
{{- end -}}
{{- if and $secure (ne (int $secure) (len .Values.etcd.external.endpoints)) -}}
  {{- fail "\netcd.external.endpoints: some begin with https:// and some do not; write all of them alike" -}}
{{- end -}}
{{- if and $secure (not .Values.etcd.external.tls.secret) -}}
  {{- fail "\netcd.external.tls.secret is empty and endpoints are at https://; name a Secret with ca.crt, which vouches for them" -}}
{{- end -}}
{{- if and (not $secure) (or .Values.etcd.external.tls.secret .Values.etcd.external.tls.clientCertificate) -}}
  {{- fail "\netcd.external.tls is given and no endpoint is at https://; write https://HOST:PORT, or leave tls out" -}}
{{- end -}}
{{- if and .Values.etcd.enabled .Values.etcd.external.auth.secret -}}
  {{- fail "\netcd.external.auth is given and etcd.enabled is true; our own etcd asks nobody for a name: leave auth out, or set etcd.enabled to false" -}}
{{- end -}}
{{- if and .Values.etcd.enabled .Values.etcd.external.endpoints -}}
  {{- fail "\netcd.external.endpoints is given and etcd.enabled is true; set etcd.enabled to false to use the external one" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
  {{- fail "\ngateway.parentRefs is empty; name the Gateway that routes to the cluster, for example [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- end }}
