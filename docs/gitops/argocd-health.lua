-- Health of a DeepSeekTrainingJob for Argo CD; docs/gitops.md says where it goes.
local status = obj.status or {}
local held = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.status == "True" then
    held[condition.type] = true
  end
end

if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not seen this version yet"}
end
local message = (status.phase or "") .. ": " .. (status.message or "")
if held.Stalled then
  return {status = "Degraded", message = message}
elseif held.Suspended then
  return {status = "Suspended", message = message}
elseif held.Ready then
  return {status = "Healthy", message = message}
end
return {status = "Progressing", message = message}
