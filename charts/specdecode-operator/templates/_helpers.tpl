{{- define "specdecode.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* A Service's name is shorter than others: 63 characters with its suffix. */}}
{{- define "specdecode.metricsName" -}}
{{- printf "%s-metrics" (include "specdecode.fullname" . | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{- define "specdecode.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "specdecode.labels" -}}
{{ include "specdecode.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: specdecode
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "specdecode.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "specdecode.fullname" .) "default") .Values.serviceAccount.name -}}
{{- end -}}

{{- define "specdecode.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* All that the operator does with the API in a namespace, and nothing else. */}}
{{- define "specdecode.rules" -}}
# Policies: watched; the finalizer is set by a patch, the status is the operator's own.
- apiGroups: [specdecode.dev]
  resources: [specdecodepolicies]
  verbs: [get, list, watch, patch]
- apiGroups: [specdecode.dev]
  resources: [specdecodepolicies/status]
  verbs: [get, patch]
# Workloads: the pod template is patched to change a profile.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, patch]
# Pods and their revisions: found and scraped, never changed.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- if .Values.rbac.readLogs }}
# Why a canary does not start, and what an engine really runs: their logs say.
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
{{- end }}
# What was learnt is kept in one ConfigMap per policy, specdecode-<policy>, beside the policy; a live schedule, where one is
# asked for, in vllm-schedule-<policy>. RBAC cannot say "those with such a label", nor name objects that are yet to be made, so this is as narrow as it gets: one at a time, by its name;
# never listed, watched or deleted. The operator patches only those that have its label and belong to the policy.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
