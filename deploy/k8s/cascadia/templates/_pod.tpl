{{/* The pod of a router or of a pool; of: {root, node, who}. */}}
{{- define "cascadia.pod" -}}
{{- $full := include "cascadia.fullname" .root -}}
{{- $node := .node -}}
serviceAccountName: {{ include "cascadia.serviceAccount" .root | quote }}
automountServiceAccountToken: false
# Kubernetes' variables for Services would be read as settings: CASCADIA_... are ours.
enableServiceLinks: false
{{- with include "cascadia.pullSecrets" .root }}{{ . | nindent 0 }}{{ end }}
securityContext: {{- include "cascadia.podSecurity" .root | nindent 2 }}
terminationGracePeriodSeconds: {{ include "cascadia.grace" (dict "root" .root "node" $node) }}
{{- if $node.download.repository }}
initContainers:
  - name: model {{- include "cascadia.download" (dict "root" .root "node" $node) | nindent 4 }}
{{- end }}
containers:
  - name: {{ $node.role }}
    image: {{ include "cascadia.image" .root | quote }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: {{- include "cascadia.args" (dict "root" .root "node" $node) | nindent 6 }}
    # `kubectl describe` shows why a node could not start.
    terminationMessagePolicy: FallbackToLogsOnError
    env:
      - name: POD_NAME
        valueFrom: {fieldRef: {fieldPath: metadata.name}}
      - name: POD_IP
        valueFrom: {fieldRef: {fieldPath: status.podIP}}
      - name: CASCADIA_LOG
        value: {{ .root.Values.log.filter | quote }}
      - name: CASCADIA_LOG_JSON
        value: {{ .root.Values.log.json | quote }}
      - name: CASCADIA_ADMIN_TOKEN
        valueFrom: {secretKeyRef: {name: {{ include "cascadia.adminSecret" .root | quote }}, key: token}}
      {{- with .root.Values.etcd.external.auth.secret }}
      - name: CASCADIA_ETCD_USER
        valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: username}}
      - name: CASCADIA_ETCD_PASSWORD
        valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: password}}
      {{- end }}
      {{- with $node.env }}{{ toYaml . | nindent 6 }}{{ end }}
    ports:
      {{- if eq $node.role "router" }}
      - {name: http, containerPort: 8080}
      {{- end }}
      - {name: grpc, containerPort: 50051}
      - {name: admin, containerPort: 9090}
    # Answers from the first moment, also while a model loads.
    startupProbe:
      httpGet: {path: /live, port: admin}
      periodSeconds: 1
      failureThreshold: 60
    # Takes new sessions: loaded, registered, seen by a router, not draining. Loading may take as long as it takes.
    readinessProbe:
      httpGet: {path: /ready, port: admin}
      periodSeconds: 2
      timeoutSeconds: 2
      failureThreshold: 2
    # An engine that has work and does none for a minute says no; slow is not dead.
    livenessProbe:
      httpGet: {path: /live, port: admin}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 3
    {{- if $node.preStopSeconds }}
    lifecycle:
      preStop: {sleep: {seconds: {{ $node.preStopSeconds }}}}
    {{- end }}
    resources: {{- include "cascadia.resources" $node | nindent 6 }}
    securityContext: {{- include "cascadia.containerSecurity" .root | nindent 6 }}
    volumeMounts:
      - {name: config, mountPath: /etc/cascadia, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      {{- if and (eq $node.role "router") (include "cascadia.apiKeysSecret" .root) }}
      - {name: api-keys, mountPath: /etc/cascadia-api-keys, readOnly: true}
      {{- end }}
      {{- if .root.Values.etcd.external.tls.secret }}
      - {name: etcd, mountPath: /etc/cascadia-etcd, readOnly: true}
      {{- end }}
      {{- with include "cascadia.modelMounts" $node }}{{ . | nindent 6 }}{{ end }}
volumes:
  - name: config
    configMap: {name: {{ $full }}}
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
  {{- if and (eq $node.role "router") (include "cascadia.apiKeysSecret" .root) }}
  - name: api-keys
    secret: {secretName: {{ include "cascadia.apiKeysSecret" .root | quote }}}
  {{- end }}
  {{- with .root.Values.etcd.external.tls.secret }}
  - name: etcd
    secret: {secretName: {{ . | quote }}}
  {{- end }}
  {{- with include "cascadia.modelVolumes" $node }}{{ . | nindent 2 }}{{ end }}
{{- with $node.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $node.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $node.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $node.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $node.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
topologySpreadConstraints:
  {{- range $key := $node.spread }}
  - topologyKey: {{ $key | quote }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "cascadia.selector" $.who | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}

{{/* A pod's annotations, with what changes when secrets of the values do: nodes read them when they start. */}}
{{- define "cascadia.annotations" -}}
{{- $secrets := list .root.Values.admin.token (ternary .root.Values.apiKeys.keys list (eq .node.role "router")) -}}
{{- $none := eq (toJson $secrets) (toJson (list "" list)) -}}
{{- toYaml (merge (ternary dict (dict "cascadia/secrets" (toJson $secrets | sha256sum)) $none) .node.podAnnotations) -}}
{{- end }}

{{- define "cascadia.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .gpu.count -}}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict .gpu.resource (toString .gpu.count))) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}
