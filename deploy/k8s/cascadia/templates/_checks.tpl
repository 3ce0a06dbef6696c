{{/* What the schema cannot say. Each message names the value and what would be right. */}}
{{- define "cascadia.checks" -}}
{{- $nodes := include "cascadia.nodes" . | fromYamlArray -}}
{{- $names := dict -}}
{{- $served := list -}}
{{- $experts := 0 -}}
{{- $full := include "cascadia.fullname" . -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" $full) -}}
  {{- fail (printf "\nthe release's name, %q, cannot begin the names of Services, which begin with a letter and have letters, digits and dashes; set fullnameOverride to one that can" .Release.Name) -}}
{{- end -}}
{{- $watched := or (not .Values.networkPolicy.enabled) .Values.networkPolicy.monitoring -}}
{{- if and .Values.monitoring.podMonitor.enabled (not $watched) -}}
  {{- fail "\nnetworkPolicy.monitoring is empty and monitoring.podMonitor.enabled is true; say whom to let at the metrics, for example [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" -}}
{{- end -}}
{{- if eq (int .Values.service.httpPort) (int .Values.service.grpcPort) -}}
  {{- fail (printf "\nservice.httpPort and service.grpcPort are both %d; give each a port of its own" (int .Values.service.httpPort)) -}}
{{- end -}}
{{- range $node := $nodes -}}
  {{- $what := ternary .role (printf "%ss[%s]" .role .pool) (eq .role "router") -}}
  {{- if hasKey $names .fullname -}}
    {{- fail (printf "\n%ss: two pools are named %q; give each %s pool a name of its own" .role .pool .role) -}}
  {{- end -}}
  {{- $_ := set $names .fullname true -}}
  {{- if and .autoscaling.enabled (gt (int .autoscaling.min) (int .autoscaling.max)) -}}
    {{- fail (printf "\n%s.autoscaling: min is %d and max is %d; set max to at least min" $what (int .autoscaling.min) (int .autoscaling.max)) -}}
  {{- end -}}
  {{- if and .autoscaling.enabled (not .autoscaling.targets) -}}
    {{- fail (printf "\n%s.autoscaling.targets is empty; say what a pod is to carry, as in the chart's defaults" $what) -}}
  {{- end -}}
  {{- if and .autoscaling.enabled (not $watched) -}}
    {{- fail (printf "\nnetworkPolicy.monitoring is empty and %s.autoscaling.enabled is true: nobody may read what it scales by; say who, for example [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" $what) -}}
  {{- end -}}
  {{- if and .autoscaling.enabled (eq $.Values.autoscaling.kind "keda") (gt (len .fullname) 46) -}}
    {{- fail (printf "\n%s.autoscaling.enabled is true and its pods begin with %q, of %d letters: Kubernetes would cut their names, by which KEDA's queries find them; shorten the pool's name or fullnameOverride by %d" $what .fullname (len .fullname) (sub (len .fullname) 46)) -}}
  {{- end -}}
  {{- if ne .role "router" -}}
    {{- if and .download.repository .synthetic -}}
      {{- fail (printf "\n%s: synthetic nodes have no weights to download; remove download or synthetic" $what) -}}
    {{- end -}}
    {{- if and .download.repository .modelVolume.claim -}}
      {{- fail (printf "\n%s: the model comes from download or from modelVolume, not from both; remove one" $what) -}}
    {{- end -}}
    {{- if and .modelVolume.claim (not .synthetic) (not (hasPrefix (printf "%s/" (trimSuffix "/" .modelVolume.mountPath)) .model)) -}}
      {{- fail (printf "\n%s.model is %q, which is not in the volume of modelVolume; name a folder under %s" $what .model .modelVolume.mountPath) -}}
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
{{- with lookup "apps/v1" "StatefulSet" .Release.Namespace (printf "%s-etcd" $full) -}}
  {{- if ne (empty .spec.volumeClaimTemplates) (not $.Values.etcd.persistence.enabled) -}}
    {{- fail (printf "\netcd.persistence.enabled cannot change where an etcd is: Kubernetes keeps a StatefulSet's volumes as they are. First `kubectl -n %s delete statefulset %s` (streams go on without it, and what it knew it is told again)" $.Release.Namespace .metadata.name) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
  {{- fail "\ngateway.parentRefs is empty; name the Gateway that routes to the cluster, for example [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- end }}
