{{/* Where a pool's model comes from: the image, a volume, or a download into a cache. All of: a node. */}}

{{- define "cascadia.modelMounts" -}}
{{- if .download.repository -}}
- {name: cache, mountPath: /cache, readOnly: true}
{{- else if .modelVolume.claim -}}
- {name: model, mountPath: {{ .modelVolume.mountPath | quote }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "cascadia.modelVolumes" -}}
{{- if .download.repository -}}
- name: cache
  {{- if .cache.claim }}
  persistentVolumeClaim: {claimName: {{ .cache.claim | quote }}}
  {{- else if .cache.persistent }}
  persistentVolumeClaim: {claimName: {{ .fullname }}-cache}
  {{- else }}
  emptyDir: {sizeLimit: {{ .cache.size }}}
  {{- end }}
- name: scripts
  configMap: {name: {{ .scripts }}}
{{- else if .modelVolume.claim -}}
- name: model
  persistentVolumeClaim: {claimName: {{ .modelVolume.claim | quote }}, readOnly: true}
{{- end }}
{{- end }}

{{/* The init step that downloads a model; of: {root, node}. */}}
{{- define "cascadia.download" -}}
image: {{ .root.Values.downloader.image | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [sh, /scripts/download.sh]
env:
  - {name: ENDPOINT, value: {{ .root.Values.downloader.endpoint | quote }}}
  - {name: REPOSITORY, value: {{ .node.download.repository | quote }}}
  - {name: REVISION, value: {{ .node.download.revision | quote }}}
  - {name: FOLDER, value: {{ include "cascadia.model" .node | quote }}}
  {{- with .root.Values.downloader.tokenSecret }}
  - name: TOKEN
    valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: token}}
  {{- end }}
resources: {{- toYaml .root.Values.downloader.resources | nindent 2 }}
securityContext: {{- include "cascadia.containerSecurity" .root | nindent 2 }}
volumeMounts:
  - {name: cache, mountPath: /cache}
  - {name: scripts, mountPath: /scripts, readOnly: true}
{{- end }}

{{/* Whether any pool downloads. */}}
{{- define "cascadia.downloads" -}}
{{- range include "cascadia.nodes" . | fromYamlArray -}}
{{- with .download.repository }}yes{{ end -}}
{{- end -}}
{{- end }}
