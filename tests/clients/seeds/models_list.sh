curl $BASE/v1/models \
  -H "Authorization: Bearer $API_KEY" | jq '.data[].id'
