{{- define "relance.labels" -}}
app.kubernetes.io/name: relance
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{- define "relance.selector" -}}
app.kubernetes.io/name: relance
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The pod of one half of the operator: component is rest or controller, args are its own. */}}
{{- define "relance.pod" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "relance.labels" . | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: relance-{{ .component }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: relance
      image: {{ $values.image | quote }}
      imagePullPolicy: {{ $values.imagePullPolicy }}
      args:
        - serve
        - --{{ .component }}
        - --health-listen=0.0.0.0:8081
        {{- range .args }}
        - {{ . }}
        {{- end }}
      env:
        - {name: RELANCE_CATALOG, value: {{ $values.catalog | quote }}}
        - {name: RELANCE_WORKER_IMAGE, value: {{ $values.image | quote }}}
        {{- with $values.tracing.endpoint }}
        - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
        {{- end }}
        - {name: RELANCE_LOG_FORMAT, value: {{ $values.logFormat }}}
        {{- with $values.storageOptions }}
        {{- $options := list }}
        {{- range $key, $value := . }}
        {{- $options = append $options (printf "%s=%s" $key $value) }}
        {{- end }}
        - {name: RELANCE_STORAGE_OPTIONS, value: {{ join "," $options | quote }}}
        {{- end }}
        {{- with $values.catalogHeaders }}
        {{- $headers := list }}
        {{- range $key, $value := . }}
        {{- $headers = append $headers (printf "%s=%s" $key $value) }}
        {{- end }}
        - {name: RELANCE_CATALOG_HEADERS, value: {{ join "," $headers | quote }}}
        {{- end }}
        {{- with $values.logLevel }}
        - {name: RUST_LOG, value: {{ . | quote }}}
        {{- end }}
      {{- with $values.storageSecret }}
      envFrom:
        - secretRef: {name: {{ . }}}
      {{- end }}
      ports:
        {{- if eq .component "rest" }}
        - {name: api, containerPort: 2333}
        {{- end }}
        - {name: health, containerPort: 8081}
      {{- if eq .component "rest" }}
      # Until every endpoint list is without it, requests still come in.
      lifecycle:
        preStop:
          sleep: {seconds: 3}
      {{- end }}
      startupProbe:
        httpGet: {path: /livez, port: health}
        periodSeconds: 1
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /livez, port: health}
        periodSeconds: 10
        timeoutSeconds: 5
      readinessProbe:
        httpGet: {path: /readyz, port: health}
        periodSeconds: 5
        timeoutSeconds: 5
      {{- with .resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if .tlsSecret }}
        - {name: tls, mountPath: /etc/relance/tls, readOnly: true}
        {{- end }}
        {{- with $values.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- with .tlsSecret }}
    - name: tls
      secret: {secretName: {{ . }}}
    {{- end }}
    {{- with $values.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  affinity:
    {{- if $values.affinity }}
    {{- toYaml $values.affinity | nindent 4 }}
    {{- else }}
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: kubernetes.io/hostname
            labelSelector:
              matchLabels:
                {{- include "relance.selector" . | nindent 16 }}
    {{- end }}
{{- end }}
