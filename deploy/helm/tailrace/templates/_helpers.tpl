{{- define "tailrace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tailrace.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tailrace.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tailrace.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tailrace.selector" -}}
app.kubernetes.io/name: {{ include "tailrace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tailrace.labels" -}}
{{ include "tailrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tailrace.serviceAccount" -}}
{{- default (include "tailrace.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* What holds for a role: the defaults, and what the role says otherwise. Takes {root, role}; gives YAML. */ -}}
{{- define "tailrace.role" -}}
{{- $own := get .root.Values.roles .role | default dict -}}
{{- mergeOverwrite (deepCopy .root.Values.defaults) (deepCopy $own) | toYaml -}}
{{- end -}}

{{- /* Settings as variables, one per line. Takes a map of groups. A number is written as JSON writes it, since a plain
one of a million would come out as 1e+06. */ -}}
{{- define "tailrace.variables" -}}
{{- range $group, $fields := . -}}
{{- if and (kindIs "map" $fields) (ne $group "event_types") -}}
{{- range $name, $value := $fields }}
TAILRACE_{{ upper $group }}__{{ upper $name }}: {{ include "tailrace.value" $value | quote }}
{{- end -}}
{{- else }}
TAILRACE_{{ upper $group }}: {{ include "tailrace.value" $fields | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tailrace.value" -}}
{{- if kindIs "string" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{- /* Name of the image of a role. Takes {root, values}. */ -}}
{{- define "tailrace.image" -}}
{{- $image := .root.Values.image -}}
{{- $tag := default .root.Chart.AppVersion $image.tag -}}
{{- $gpu := .values.gpu | default dict -}}
{{- if $gpu.enabled -}}
{{- default (printf "%s:%s-cuda" $image.repository $tag) $gpu.image -}}
{{- else if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository $tag -}}
{{- end -}}
{{- end -}}

{{- /* The topic of which KEDA watches the lag, without prefix. */ -}}
{{- define "tailrace.topic" -}}
{{- get (dict "interactions" "interactions.v1" "items" "transitions.v1" "catalogue" "items.v1" "ranker" "training-examples.v1") . -}}
{{- end -}}

{{- /* Partitions of a topic whose number is not fixed by design. Takes {root, topic}, its name without prefix. The two that
`tailrace topics grow` raises have a number of their own. */ -}}
{{- define "tailrace.partitions" -}}
{{- $all := int .root.Values.settings.topics.partitions -}}
{{- $users := int .root.Values.topics.userPartitions | default $all -}}
{{- if mod $users $all -}}
{{- fail (printf "topics.userPartitions: %d is no multiple of settings.topics.partitions (%d); users would move between partitions that are there, and the order of their events could be lost" $users $all) -}}
{{- end -}}
{{- ternary $users $all (has .topic (list "interactions.v1" "users.v1")) -}}
{{- end -}}
